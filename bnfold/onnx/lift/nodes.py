"""What single ONNX nodes mean: linear maps with constant weights, batch norms, identities.

Each function reads one node by its definition in the ONNX operator specification (opset 7 and later, where Gemm and Add
broadcast as numpy does) and says what it is, or why it is not.
"""

from dataclasses import replace

import onnx

from bnfold.algebra.affine import Affine, batch_norm_defect
from bnfold.algebra.einsum import batched_product_map, einsum_map
from bnfold.algebra.linear_map import IS_TRANSPOSED, PADS_WITH_ZEROS, LinearMap, Window
from bnfold.algebra.rounding import STORAGE_DTYPES, DType
from bnfold.algebra.tensor import Tensor
from bnfold.errors import ModelLoadError
from bnfold.graph import AffineNode, Value
from bnfold.onnx.lift.constants import Constant, Constants
from bnfold.onnx.lift.precision.block_products import BIAS, is_block_product, lift_block_product
from bnfold.onnx.lift.precision.quantised import find_quantised
from bnfold.onnx.lift.types import ValueTypes, dtype_in, shape_in
from bnfold.onnx.proto.evaluation import EPSILON
from bnfold.onnx.proto.names import (
    find_attribute,
    float_attribute,
    int_attribute,
    ints_attribute,
    is_standard,
    label,
    string_attribute,
)
from bnfold.reasons import Stop, StopCode

OLDEST_OPSET = 7
"""Before this version Gemm and arithmetic broadcast in another way, and BatchNormalization says is_test."""

_PRODUCTS = ("MatMul", "Einsum")
"""Products without a bias, whose weight is the operand that is constant."""

_PARAMETERS = ("scale", "bias", "mean", "variance")


def lift_batch_norm(node: onnx.NodeProto, source: Value, constants: Constants, opset: int) -> Affine | Stop:
    """Reads a BatchNormalization node.

    Args:
        node: The node.
        source: The value that it normalises.
        constants: The constants of its graph.
        opset: The version of the default domain.

    Returns:
        Its affine in inference mode, or the reason that it is none.

    Raises:
        ModelLoadError: Its parameters do not have one common length, or not that of the channels.
    """
    stop = _inference_mode_stop(node, opset, constants)
    if stop is not None:
        return stop
    if opset < OLDEST_OPSET and isinstance(source.producer, AffineNode):
        # Both in one would have to be written in arithmetic that broadcasts.
        return Stop(StopCode.OPSET, f"in opset {opset} it cannot become one with '{source.producer.name}' before it")
    found: list[Constant] = []
    for parameter, name in zip(_PARAMETERS, node.input[1:5], strict=True):
        constant = constants.find(name)
        if constant is None:
            reason = f"its {parameter} '{name}' {constants.why_unknown(name)}"
            return Stop(StopCode.PARAMETERS_NOT_CONSTANT, reason)
        if constant.overridable:
            return Stop(StopCode.OVERRIDABLE, f"its {parameter} '{name}' is a model input that a caller may override")
        found.append(constant)
    if len({constant.shape for constant in found}) != 1 or len(found[0].shape) != 1:
        shapes = ", ".join(str(list(constant.shape)) for constant in found)
        message = f"the parameters of BatchNormalization '{label(node)}' have shapes {shapes}, not one common (C,)"
        raise ModelLoadError(message)
    if source.shape is None:
        return Stop(StopCode.UNKNOWN_RANK, f"the rank of its input '{source.name}' is not known")
    if len(source.shape) < 2:
        return Stop(StopCode.CHANNEL_AXIS, f"its input '{source.name}' has rank {len(source.shape)}, no channel axis")
    gamma, beta, mean, variance = (constant.read() for constant in found)
    epsilon = float_attribute(node, "epsilon", EPSILON)
    defect = batch_norm_defect(gamma, beta, mean, variance, epsilon)
    if defect is not None:
        return Stop(StopCode.PARAMETERS_NOT_FINITE, f"its {defect}")
    require_channels(node, source, 1 - len(source.shape), len(gamma))
    return Affine.from_batch_norm(gamma, beta, mean, variance, epsilon, rank=len(source.shape))


def require_channels(node: onnx.NodeProto, source: Value, axis: int, channels: int) -> None:
    """Requires that a value has as many channels as the constants of the node that reads it.

    Args:
        node: The node.
        source: What it reads; an unknown size is not looked at.
        axis: The channel axis of `source`, negative.
        channels: How many channels the constants are for.

    Raises:
        ModelLoadError: The number is another one.
    """
    size = source.size(axis)
    if isinstance(size, int) and size != channels:
        message = f"{_of(node)} is for {channels} channels, and its input '{source.name}' has {size}"
        raise ModelLoadError(message)


def _inference_mode_stop(node: onnx.NodeProto, opset: int, constants: Constants) -> Stop | None:
    if any(given.ref_attr_name for given in node.attribute):
        return Stop(StopCode.PARAMETERS_NOT_CONSTANT, "its attributes are parameters of the function around it")
    if opset < OLDEST_OPSET and not int_attribute(node, "is_test", 0):
        reason = f"in opset {opset} it normalises with the statistics of each batch, unless its is_test is 1"
        return Stop(StopCode.OPSET, reason)
    if int_attribute(node, "training_mode", 0):
        # A constant is normalised where weights are standardised.
        whose = f"the constant '{node.input[0]}'" if constants.is_constant(node.input[0]) else "each batch"
        return Stop(StopCode.TRAINING_MODE, f"training_mode is 1: it normalises with the statistics of {whose}")
    if any(node.output[1:]):
        return Stop(StopCode.TRAINING_MODE, "it also outputs batch statistics, as in training")
    if not int_attribute(node, "spatial", 1):
        return Stop(StopCode.SPATIAL, "spatial is 0: it has statistics for each position, not each channel")
    return None


def lift_map(
    node: onnx.NodeProto, constants: Constants, source_rank: int | None, bias_add: onnx.NodeProto | None
) -> LinearMap | Stop | None:
    """Reads a Conv, ConvTranspose, Gemm, MatMul, Einsum or MatMulNBits node.

    Args:
        node: The node.
        constants: The constants of its graph.
        source_rank: The rank of its activation, None if unknown.
        bias_add: The Add node that gives a MatMul its bias.

    Returns:
        The map; the reason that its weights cannot change; or None for any other node.

    Raises:
        ModelLoadError: The shape of a constant contradicts the node.
    """
    old = constants.opset < OLDEST_OPSET
    in_blocks = is_block_product(node)
    if not in_blocks and not is_standard(node, "Conv", "ConvTranspose", *(() if old else ("Gemm", "MatMul", "Einsum"))):
        return None
    weight_at = 1
    if node.op_type == "Einsum" and len(node.input) != 2:
        return None
    if node.op_type in _PRODUCTS and not constants.is_constant(node.input[1]) and constants.is_constant(node.input[0]):
        weight_at = 0
    bias = None
    bias_name = _bias_name(node, bias_add, constants)
    if bias_name:
        bias = constants.find(bias_name)
        if bias is None:
            reason = f"the bias '{bias_name}' of {_of(node)} {constants.why_unknown(bias_name)}"
            return Stop(StopCode.WEIGHT_NOT_CONSTANT, reason)
        if bias.overridable:
            return Stop(StopCode.OVERRIDABLE, f"the bias '{bias_name}' of {_of(node)} is a model input")
    if in_blocks:
        return lift_block_product(node, bias, constants)
    weight = _weight(node, weight_at, constants)
    if isinstance(weight, Stop):
        return weight
    match node.op_type:
        case "Conv" | "ConvTranspose":
            return _convolution(node, weight, bias)
        case "Gemm":
            return _gemm(node, weight, bias)
        case "Einsum":
            return _einsum(node, weight, bias, weight_at, source_rank)
    return _matmul(node, weight, bias, weight_at, source_rank)


def _weight(node: onnx.NodeProto, position: int, constants: Constants) -> Tensor | Stop:
    name = node.input[position]
    if any(given.ref_attr_name for given in node.attribute):
        return Stop(StopCode.WEIGHT_NOT_CONSTANT, f"the attributes of {_of(node)} are parameters of a function")
    quantised = find_quantised(name, _of(node), constants) if constants.is_constant(name) else None
    if quantised is not None:
        return quantised
    weight = constants.find(name)
    if weight is None:
        reason = f"the weight '{name}' of {_of(node)} {constants.why_unknown(name)}"
        return Stop(StopCode.WEIGHT_NOT_CONSTANT, reason)
    if weight.overridable:
        reason = f"the weight '{name}' of {_of(node)} is a model input that a caller may override"
        return Stop(StopCode.OVERRIDABLE, reason)
    if weight.dtype not in STORAGE_DTYPES:
        return Stop(StopCode.WEIGHT_DTYPE, f"the weight '{name}' of {_of(node)} is {weight.dtype}")
    return weight


def _bias_name(node: onnx.NodeProto, bias_add: onnx.NodeProto | None, constants: Constants) -> str:
    if bias_add is not None:
        return next(str(name) for name in bias_add.input if constants.is_constant(name))
    position = bias_position(node)
    return str(node.input[position]) if 0 < position < len(node.input) else ""


def bias_position(node: onnx.NodeProto) -> int:
    """Which input of a map is its bias; 0 for a product that has none."""
    if is_block_product(node):
        return BIAS
    return 0 if node.op_type in _PRODUCTS else 2


def _convolution(node: onnx.NodeProto, weight: Tensor, bias: Constant | None) -> LinearMap:
    groups = int_attribute(node, "group", 1)
    transposed = node.op_type == "ConvTranspose"
    spatial = len(weight.shape) - 2
    kernel = ints_attribute(node, "kernel_shape")
    if spatial < 1 or groups < 1 or weight.shape[0] % groups or (kernel and kernel != weight.shape[2:]):
        message = (
            f"the weight of {_of(node)} has shape {list(weight.shape)}, which contradicts its group {groups}"
            f" or kernel_shape {list(kernel)}"
        )
        raise ModelLoadError(message)
    window = lift_window(node, weight.shape[2:])
    linear = LinearMap(
        weight=weight,
        bias=bias,
        groups=groups,
        out_first=not transposed,
        output_axis=-1 - spatial,
        input_axis=-1 - spatial,
        partial_kernel=_partial_kernel(node, weight.shape[2:], window),
        window=window,
    )
    if bias is not None and bias.shape != (linear.out_channels,):
        message = f"the bias of {_of(node)} has shape {list(bias.shape)}, not [{linear.out_channels}]"
        raise ModelLoadError(message)
    return linear


def _partial_kernel(node: onnx.NodeProto, kernel: tuple[int, ...], window: Window | None) -> str:
    if node.op_type == "ConvTranspose":
        return "" if window is not None and window.leaves_whole_sums(kernel) else IS_TRANSPOSED
    auto_pad = string_attribute(node, "auto_pad", "NOTSET")
    pads = ints_attribute(node, "pads") if auto_pad == "NOTSET" else ()
    # SAME pads an axis with dilation · (size − 1) zeros at most: none for a kernel of size 1.
    pads_by_name = auto_pad.startswith("SAME") and any(size > 1 for size in kernel)
    return PADS_WITH_ZEROS if any(pads) or pads_by_name else ""


def lift_window(node: onnx.NodeProto, kernel: tuple[int, ...]) -> Window | None:
    """How a Conv, ConvTranspose or AveragePool slides.

    Args:
        node: The node.
        kernel: The size of its kernel.

    Returns:
        The window, or None where it depends on the size of the input or is not well formed.
    """
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    strides = ints_attribute(node, "strides") or ones
    dilations = ints_attribute(node, "dilations") or ones
    pads = ints_attribute(node, "pads") or zeros + zeros
    auto_pad = string_attribute(node, "auto_pad", "NOTSET")
    transposed = node.op_type == "ConvTranspose"
    if auto_pad == "VALID":
        pads = zeros + zeros
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER") and strides == ones and not transposed:
        sums = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=False)]
        less, more = tuple(total // 2 for total in sums), tuple(total - total // 2 for total in sums)
        pads = less + more if auto_pad == "SAME_UPPER" else more + less
    elif auto_pad != "NOTSET":
        return None
    extra = ints_attribute(node, "output_padding") or zeros
    if {len(strides), len(dilations), len(pads) / 2, len(extra)} != {len(kernel)} or min(*strides, *dilations) < 1:
        return None
    if min(*pads, *extra) < 0 or (transposed and find_attribute(node, "output_shape") is not None):
        return None
    after = pads[len(kernel) :]
    if transposed:
        after = tuple(pad - more for pad, more in zip(after, extra, strict=True))
    return Window(strides, dilations, pads[: len(kernel)], after)


def _gemm(node: onnx.NodeProto, weight: Tensor, bias: Constant | None) -> LinearMap:
    if len(weight.shape) != 2:
        message = f"the weight of {_of(node)} has shape {list(weight.shape)}, not two dimensions"
        raise ModelLoadError(message)
    linear = LinearMap(
        weight=weight,
        bias=bias,
        out_first=bool(int_attribute(node, "transB", 0)),
        input_axis=-2 if int_attribute(node, "transA", 0) else -1,
        alpha=float_attribute(node, "alpha", 1.0),
        beta=float_attribute(node, "beta", 1.0),
    )
    if bias is not None and (len(bias.shape) > 2 or (1, *bias.shape)[-1] not in (1, linear.out_channels)):
        shape = list(bias.shape)
        message = f"the bias of {_of(node)} has shape {shape}, which does not fit {linear.out_channels} columns"
        raise ModelLoadError(message)
    return linear


def _matmul(
    node: onnx.NodeProto, weight: Tensor, bias: Constant | None, weight_at: int, source_rank: int | None
) -> LinearMap | Stop:
    if len(weight.shape) < 2:
        reason = f"the weight of {_of(node)} has {len(weight.shape)} dimensions, not 2"
        return Stop(StopCode.NO_RULE, reason)
    if weight_at == 1 and len(weight.shape) == 2:
        return LinearMap(weight=weight, bias=bias, out_first=False, bias_is_extra=True)
    if source_rank is None:
        source = node.input[1 - weight_at]
        return Stop(StopCode.UNKNOWN_RANK, f"the rank of '{source}', the input of {_of(node)}, is not known")
    if len(weight.shape) > 2:
        found = batched_product_map(weight, source_rank, on_left=weight_at == 0)
        return Stop(StopCode.NO_RULE, f"{_of(node)} {found}") if isinstance(found, str) else replace(found, bias=bias)
    axis = -2 if source_rank > 1 else -1
    return LinearMap(weight=weight, bias=bias, out_first=True, output_axis=axis, input_axis=axis, bias_is_extra=True)


def _einsum(
    node: onnx.NodeProto, weight: Tensor, bias: Constant | None, weight_at: int, source_rank: int | None
) -> LinearMap | Stop:
    found = einsum_map(string_attribute(node, "equation", ""), weight_at, weight, source_rank)
    if isinstance(found, str):
        return Stop(StopCode.NO_RULE, f"{_of(node)} {found}")
    return replace(found, bias=bias)


def is_bias_add(node: onnx.NodeProto, add: onnx.NodeProto, constants: Constants, types: ValueTypes) -> bool:
    """Whether an Add is the bias of a product with a constant: one constant value for each channel.

    Args:
        node: The product.
        add: What reads its output.
        constants: The constants of the graph.
        types: What is known about its values.
    """
    if not is_standard(add, "Add"):
        return False
    bias_names = [name for name in add.input if constants.is_constant(name)]
    channels = _channels(node, constants, types)
    if len(bias_names) != 1 or channels is None:
        return False
    axis, count, dtype = channels
    bias = constants.find(bias_names[0])
    rank = _rank(node.output[0], types)
    if bias is None or bias.overridable or bias.dtype != dtype or len(bias.shape) > (1 if rank is None else rank):
        return False
    others = [size for position, size in enumerate(bias.shape, -len(bias.shape)) if position != axis]
    along = bias.shape[axis] if len(bias.shape) >= -axis else 1
    return all(size == 1 for size in others) and along in (1, count)


def _channels(node: onnx.NodeProto, constants: Constants, types: ValueTypes) -> tuple[int, int, DType] | None:
    """The axis, negative, and the number of the channels that a product without a bias gives, and their type."""
    if is_block_product(node):
        scales = constants.find(node.input[2])
        has_bias = len(node.input) > BIAS and bool(node.input[BIAS])
        return None if scales is None or has_bias else (-1, int_attribute(node, "N", 0), scales.dtype)
    data = [name for name in node.input if not constants.is_constant(name)]
    if not is_standard(node, *_PRODUCTS) or len(data) != 1:
        return None
    linear = lift_map(node, constants, _rank(data[0], types), None)
    return (linear.output_axis, linear.out_channels, linear.weight.dtype) if isinstance(linear, LinearMap) else None


def _rank(name: str, types: ValueTypes) -> int | None:
    shape = shape_in(types, name)
    return None if shape is None else len(shape)


def is_identity(node: onnx.NodeProto, constants: Constants, types: ValueTypes, *, mask_is_read: bool) -> bool:
    """Whether a node passes its first input on as it is.

    Identity does, Dropout at inference, Cast and CastLike to the same type, and Max, Min, Sum and Mean of it alone.

    Args:
        node: The node, of opset 7 or later.
        constants: The constants of its graph.
        types: What is known about the values of its graph.
        mask_is_read: Whether anything reads an output besides the first.
    """
    if is_standard(node, "Identity") or (is_standard(node, "Max", "Min", "Sum", "Mean") and len(node.input) == 1):
        return True
    if is_standard(node, "Cast", "CastLike"):
        source, target = (dtype_in(types, name) for name in (node.input[0], node.output[0]))
        return source == target != ""
    if not is_standard(node, "Dropout") or mask_is_read:
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    training = constants.find(node.input[2])
    return training is not None and not training.overridable and not bool(training.read().any())


def _of(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{label(node)}'"
