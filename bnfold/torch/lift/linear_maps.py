"""What single torch nodes mean: linear maps with constant weights.

Each node is read by the definition of its operator in torch, before decomposition or in core aten.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from bnfold.algebra.einsum import batched_product_map, einsum_map
from bnfold.algebra.linear_map import IS_TRANSPOSED, PADS_WITH_ZEROS, LinearMap, Window
from bnfold.algebra.rounding import STORAGE_DTYPES
from bnfold.errors import UnsupportedModelError
from bnfold.reasons import Stop, StopCode
from bnfold.torch.fx.nodes import arguments, fake_tensor, operator_name, shape_of
from bnfold.torch.lift.constants import Constant, Constants
from bnfold.torch.lift.evaluation import quantises

_CONVOLUTIONS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution".split())
_PRODUCTS = frozenset("matmul mm bmm addmm linear einsum".split())
_CALLED = {"matmul": "MatMul", "mm": "MatMul", "bmm": "bmm", "addmm": "Addmm", "linear": "Linear", "einsum": "Einsum"}
_RESHAPES = frozenset("view _unsafe_view reshape".split())
_KEEPS_ELEMENTS = _RESHAPES | {"clone", "contiguous", "detach", "alias"}


@dataclass(frozen=True, slots=True)
class FoundMap:
    """A node that is a linear map of one value.

    Attributes:
        linear: The map.
        source: The node that computes the value.
        parameters: The names of the parameters and buffers that its constants are made of.
    """

    linear: LinearMap
    source: fx.Node
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RepeatedWeight:
    """The weight of a batched product (bmm) that has one and the same matrix for all of its batch.

    torch writes a product of a value of rank 3 or more with a matrix so when it decomposes it: x @ W is
    bmm(x, expand(W)), perhaps with views that make one batch of all leading axes, and

        bmm(x, expand(W))[b] = x[b] @ W

    is a linear map. A weight that may differ along the batch is none: channels have one vector for all of it.

    Attributes:
        position: Which argument of the product it is.
        expand: The node that repeats it.
        view: The node that makes one batch of the axes along which it does, if there are several.
        matrix: The constant that is repeated, of rank 2.
    """

    position: int
    expand: fx.Node
    view: fx.Node | None
    matrix: fx.Node


def repeated_weight(node: fx.Node, constants: Constants) -> RepeatedWeight | None:
    """The repeated weight of a bmm; None for any other node, and where it is not repeated or both operands are."""
    if operator_name(node) != "bmm":
        return None
    given = arguments(node)
    found = [_repeated(given[name], position, constants) for position, name in enumerate(("self", "mat2"))]
    known = [repeated for repeated in found if repeated is not None]
    return known[0] if len(known) == 1 else None


def _repeated(operand: object, position: int, constants: Constants) -> RepeatedWeight | None:
    """Looks for the expand behind what only gives the same matrices, in a batch of another shape at most.

    With an open batch these are no constants; then nothing else may read them, as it could change them in place.
    """

    def keeps_value(node: fx.Node) -> bool:
        return constants.is_constant(node) or len(node.users) == 1

    view: fx.Node | None = None
    while isinstance(operand, fx.Node) and operator_name(operand) in _KEEPS_ELEMENTS:
        source = next(iter(operand.all_input_nodes))
        before, after = shape_of(fake_tensor(source)), shape_of(fake_tensor(operand))
        if before is None or after is None or before[-2:] != after[-2:] or not keeps_value(operand):
            return None
        if operator_name(operand) in _RESHAPES and before != after:
            view = view or operand
        operand = source
    if not isinstance(operand, fx.Node) or operator_name(operand) != "expand" or not keeps_value(operand):
        return None
    matrix, sizes = arguments(operand)["self"], arguments(operand)["size"]
    if not isinstance(sizes, Sequence) or -1 in sizes[:-2]:
        return None
    if isinstance(matrix, fx.Node) and operator_name(matrix) == "unsqueeze" and arguments(matrix)["dim"] in (0, -3):
        matrix = arguments(matrix)["self"]
    found, shape = constants.find(matrix), shape_of(fake_tensor(operand))
    if not isinstance(matrix, fx.Node) or found is None or shape is None or found.shape != shape[-2:]:
        return None
    return RepeatedWeight(position, operand, view, matrix)


def map_type(node: fx.Node) -> str:
    """What a node is called in reports if it could be a linear map, "" if it could not."""
    name = operator_name(node)
    if name in _CONVOLUTIONS:
        transposed = name.startswith("conv_transpose") or bool(arguments(node).get("transposed", False))
        return "ConvTranspose" if transposed else "Conv"
    return _CALLED.get(name, "")


def lift_map(node: fx.Node, constants: Constants) -> FoundMap | Stop | None:
    """Reads a convolution or a matrix product.

    Args:
        node: The node.
        constants: The constants of its graph.

    Returns:
        The map; the reason that its weights cannot change; or None for any other node.

    Raises:
        UnsupportedModelError: The shape of a constant contradicts the node.
    """
    name = operator_name(node)
    if name not in _CONVOLUTIONS and name not in _PRODUCTS:
        return None
    given = arguments(node)
    repeated = repeated_weight(node, constants)
    operands = _operands(given, constants, name)
    if operands is None or (name == "bmm" and repeated is None and not constants.is_constant(operands[1])):
        return None
    data, weight, bias = operands
    if repeated is not None:
        data, weight = given["mat2" if repeated.position == 0 else "self"], repeated.matrix
    if not isinstance(data, fx.Node) or constants.is_constant(data):
        return Stop(StopCode.NO_RULE, f"{map_type(node)} '{node.name}' has no input that is computed while it runs")
    found = constants.find(weight)
    if found is None:
        what = "quantised while the model runs" if _is_quantised(weight) else "not a constant"
        return Stop(StopCode.WEIGHT_NOT_CONSTANT, f"the weight of {map_type(node)} '{node.name}' is {what}")
    if found.dtype not in STORAGE_DTYPES:
        return Stop(StopCode.WEIGHT_DTYPE, f"the weight of {map_type(node)} '{node.name}' is {found.dtype}")
    found_bias = constants.find(bias)
    if bias is not None and (found_bias is None or found_bias.dtype not in STORAGE_DTYPES):
        return Stop(StopCode.WEIGHT_NOT_CONSTANT, f"the bias of {map_type(node)} '{node.name}' is not a constant")
    if name in _CONVOLUTIONS:
        linear = _convolution(node, given, found, found_bias)
    elif name == "einsum":
        linear = _einsum(node, given, found, _rank(data))
    else:
        on_left = name != "linear" and data is not given["mat1" if name == "addmm" else "self"]
        linear = _product(node, given, found, found_bias, _rank(data), on_left=on_left)
    if isinstance(linear, Stop):
        return linear
    read = (found,) if found_bias is None else (found, found_bias)
    return FoundMap(linear, data, tuple(dict.fromkeys(part for constant in read for part in constant.parameters)))


def _is_quantised(weight: object) -> bool:
    """Whether a weight comes out of a quantisation, perhaps rearranged."""
    while isinstance(weight, fx.Node) and weight.op == "call_function":
        if quantises(weight):
            return True
        weight = next(iter(weight.all_input_nodes), None)
    return False


def _operands(given: dict[str, object], constants: Constants, name: str) -> tuple[object, object, object] | None:
    """The data, the weight and the bias of a map; the weight of a matrix product is what is constant.

    None for a sum of products of other than two operands, of which one is constant.
    """
    if name == "einsum":
        parts = given["tensors"]
        if not isinstance(parts, Sequence) or [*map(constants.is_constant, parts)].count(True) != 1 or len(parts) != 2:
            return None
        first, second = parts
        return (first, second, None) if constants.is_constant(second) else (second, first, None)
    if name in ("mm", "bmm", "matmul", "addmm"):
        first = given["mat1" if name == "addmm" else "self"]
        second = given["other" if name == "matmul" else "mat2"]
        bias = given["self"] if name == "addmm" else None
        return (first, second, bias) if constants.is_constant(second) else (second, first, bias)
    return given["input"], given["weight"], given["bias"]


def _convolution(node: fx.Node, given: dict[str, object], weight: Constant, bias: Constant | None) -> LinearMap | Stop:
    groups, spatial = given["groups"], len(weight.shape) - 2
    transposed = map_type(node) == "ConvTranspose"
    if not isinstance(groups, int) or spatial < 1 or groups < 1 or weight.shape[0] % groups:
        message = f"the weight of '{node.name}' has shape {list(weight.shape)}, which contradicts its groups ({groups})"
        raise UnsupportedModelError(message)
    window = _window(given, weight.shape[2:], transposed=transposed)
    linear = LinearMap(
        weight=weight,
        bias=bias,
        groups=groups,
        out_first=not transposed,
        output_axis=-1 - spatial,
        input_axis=-1 - spatial,
        partial_kernel=_partial_kernel(given, weight.shape[2:], window, transposed=transposed),
        window=window,
    )
    if bias is not None and bias.shape != (linear.out_channels,):
        message = f"the bias of '{node.name}' has shape {list(bias.shape)}, not [{linear.out_channels}]"
        raise UnsupportedModelError(message)
    return linear


def _numbers(given: object, count: int) -> tuple[int, ...] | None:
    """An argument that is one integer or one for each spatial axis; None where they are not known."""
    numbers = (given,) * count if isinstance(given, int) else given
    if not isinstance(numbers, Sequence):
        return None
    known = tuple(number for number in numbers if isinstance(number, int))
    if len(known) != len(numbers) or len(known) not in (1, count):
        return None
    return known * count if len(known) == 1 else known


def _pads(given: dict[str, object], kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How many zeros stand before and after the input, None where that is not known."""
    padding, count = given["padding"], len(kernel)
    if padding == "valid":
        return (0,) * count, (0,) * count
    if padding == "same":
        dilations = _numbers(given["dilation"], count)
        if dilations is None:
            return None
        sums = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
        return tuple(total // 2 for total in sums), tuple(total - total // 2 for total in sums)
    pads = None if isinstance(padding, str) else _numbers(padding, count)
    return None if pads is None else (pads, pads)


def _partial_kernel(
    given: dict[str, object], kernel: tuple[int, ...], window: Window | None, *, transposed: bool
) -> str:
    if transposed:
        return "" if window is not None and window.leaves_whole_sums(kernel) else IS_TRANSPOSED
    pads = _pads(given, kernel)
    return PADS_WITH_ZEROS if pads is None or any(pads[0]) or any(pads[1]) else ""


def _window(given: dict[str, object], kernel: tuple[int, ...], *, transposed: bool) -> Window | None:
    count = len(kernel)
    strides, dilations, pads = (
        _numbers(given["stride"], count),
        _numbers(given["dilation"], count),
        _pads(given, kernel),
    )
    extra = _numbers(given.get("output_padding", 0), count)
    if strides is None or dilations is None or pads is None or extra is None:
        return None
    if min(*strides, *dilations) < 1 or min(*pads[0], *pads[1], *extra) < 0:
        return None
    after = tuple(pad - more for pad, more in zip(pads[1], extra, strict=True)) if transposed else pads[1]
    return Window(strides, dilations, pads[0], after)


def _rank(node: fx.Node) -> int | None:
    shape = shape_of(fake_tensor(node))
    return None if shape is None else len(shape)


def _einsum(node: fx.Node, given: dict[str, object], weight: Constant, rank: int | None) -> LinearMap | Stop:
    equation, parts = given["equation"], given["tensors"]
    if not isinstance(equation, str) or not isinstance(parts, Sequence) or given.get("path") is not None:
        return Stop(StopCode.NO_RULE, f"Einsum '{node.name}' has no equation that is known")
    return _as_map(node, einsum_map(equation, [*parts].index(weight.node), weight, rank))


def _as_map(node: fx.Node, found: LinearMap | str) -> LinearMap | Stop:
    return Stop(StopCode.NO_RULE, f"{map_type(node)} '{node.name}' {found}") if isinstance(found, str) else found


def _product(
    node: fx.Node,
    given: dict[str, object],
    weight: Constant,
    bias: Constant | None,
    rank: int | None,
    *,
    on_left: bool,
) -> LinearMap | Stop:
    name = operator_name(node)
    if rank is None:
        return Stop(StopCode.UNKNOWN_RANK, f"the rank of the input of '{node.name}' is not known")
    if len(weight.shape) > 2:
        return _as_map(node, batched_product_map(weight, rank, on_left=on_left))
    if len(weight.shape) < 2:
        return Stop(StopCode.NO_RULE, f"the weight of '{node.name}' has {len(weight.shape)} dimensions, not 2")
    if name == "linear":
        linear = LinearMap(weight=weight, bias=bias)
        if bias is not None and bias.shape != (linear.out_channels,):
            message = f"the bias of '{node.name}' has shape {list(bias.shape)}, not [{linear.out_channels}]"
            raise UnsupportedModelError(message)
        return linear
    alpha, beta = given.get("alpha", 1), given.get("beta", 1)
    if not isinstance(alpha, float | int) or not isinstance(beta, float | int):
        return Stop(StopCode.NO_RULE, f"alpha or beta of '{node.name}' is computed while the model runs")
    axis = -2 if on_left and rank > 1 else -1
    return LinearMap(
        weight=weight,
        bias=bias,
        out_first=on_left,
        output_axis=axis,
        input_axis=axis,
        alpha=float(alpha),
        beta=float(beta),
        bias_is_extra=name != "addmm",
    )
