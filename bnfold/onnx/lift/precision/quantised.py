"""Weights behind DequantizeLinear: the integers that a file stores, or floats that it quantises when it runs."""

from collections.abc import Iterator

import onnx

from bnfold.algebra.quantised import Narrowed, QuantisedTensor, Reshaped, Turned
from bnfold.algebra.rounding import STORAGE_DTYPES, DType, has_every_number_of
from bnfold.onnx.lift.constants import Constant, Constants
from bnfold.onnx.proto.names import int_attribute, ints_attribute, is_standard, label
from bnfold.reasons import Stop, StopCode

_SCALE_FOR_EACH_INDEX = 13
"""The opset in which QuantizeLinear and DequantizeLinear got an axis."""

_MOVE_OR_ROUND = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "CastLike")
"""What may stand between the dequantised numbers and their reader."""


def find_quantised(name: str, reader: str, constants: Constants) -> QuantisedTensor | Stop | None:
    """Reads a weight that is stored as integers.

    Args:
        name: The weight, a constant.
        reader: What reports call the node that reads it.
        constants: The constants of its graph.

    Returns:
        The weight; the reason that its scale cannot change; or None if it is not quantised.
    """
    if not any(node.op_type == "DequantizeLinear" for node in _expression(name, constants)):
        return None
    which = f"the weight '{name}' of {reader}"
    node, after = dequantised_by(name, constants)
    if node is None or not is_standard(node, "DequantizeLinear"):
        between = "" if node is None else f", and {node.op_type} changes it before it is used"
        return Stop(StopCode.QUANTIZED_WEIGHT, f"{which} is quantised{between}")
    return _dequantised(node, after, which, constants)


def dequantised_by(name: str, constants: Constants) -> tuple[onnx.NodeProto | None, list[onnx.NodeProto]]:
    """What a weight comes from, before everything that only moves its numbers about or rounds them.

    Args:
        name: The weight.
        constants: The constants of the graph that reads it.

    Returns:
        The node that computes the numbers, if one does, and the nodes after it, in order.
    """
    after: list[onnx.NodeProto] = []
    node = constants.producer(name)
    while node is not None and is_standard(node, *_MOVE_OR_ROUND):
        if node.op_type != "Identity":
            after.insert(0, node)
        node = constants.producer(node.input[0])
    return node, after


def _dequantised(
    node: onnx.NodeProto, after: list[onnx.NodeProto], which: str, constants: Constants
) -> QuantisedTensor | Stop:
    found = [constants.find(name) if name else None for name in node.input]
    integers, scale = found[:2]
    zero_point = found[2] if len(found) > 2 else None
    if integers is None or scale is None or scale.dtype not in STORAGE_DTYPES or _has_another_type(node, scale):
        return Stop(StopCode.QUANTIZED_WEIGHT, f"{which} is quantised in a way that is not understood")
    if any(constant is not None and constant.overridable for constant in found):
        return Stop(StopCode.OVERRIDABLE, f"{which} is a model input that a caller may override")
    rank = len(integers.shape)
    axis = int_attribute(node, "axis", 1)
    block = int_attribute(node, "block_size", 0)
    if scale.shape not in ((), (1,)) and not block and (axis >= rank or scale.shape != (integers.shape[axis],)):
        return Stop(StopCode.QUANTIZED_WEIGHT, f"{which} is quantised with scales of another shape")
    steps = _steps(after, scale.dtype, which, constants)
    if isinstance(steps, Stop):
        return steps
    return QuantisedTensor(
        integers=integers,
        scale=scale,
        zero_point=zero_point,
        axis=axis % rank if rank else 0,
        block=block,
        steps=steps,
        simulated=_is_simulated(node, integers, scale, constants),
        along_an_axis=constants.opset >= _SCALE_FOR_EACH_INDEX,
    )


def _steps(
    after: list[onnx.NodeProto], dtype: DType, which: str, constants: Constants
) -> tuple[Turned | Reshaped | Narrowed, ...] | Stop:
    """What the nodes between the dequantised numbers and their reader do."""
    steps: list[Turned | Reshaped | Narrowed] = []
    for node in after:
        known = constants.type_of(node.output[0])
        if known is None:
            return Stop(StopCode.QUANTIZED_WEIGHT, f"{which} is quantised, and what {node.op_type} makes is not known")
        shape, to = known
        if is_standard(node, "Transpose"):
            steps.append(Turned(ints_attribute(node, "perm") or tuple(reversed(range(len(shape))))))
        elif not is_standard(node, "Cast", "CastLike"):
            steps.append(Reshaped(shape))
        elif to != dtype:
            if not has_every_number_of(dtype, to):
                reason = f"{which} is quantised, and rounded to {dtype} before it is made {to}"
                return Stop(StopCode.QUANTIZED_WEIGHT, reason)
            steps.append(Narrowed(to))
            dtype = to
    return tuple(steps)


def _has_another_type(node: onnx.NodeProto, scale: Constant) -> bool:
    given = int_attribute(node, "output_dtype", 0)
    return given not in (0, onnx.helper.np_dtype_to_tensor_dtype(scale.dtype))


def _is_simulated(node: onnx.NodeProto, integers: Constant, scale: Constant, constants: Constants) -> bool:
    """Whether floats go through QuantizeLinear with the same parameters, precise enough to come back as they were."""
    quantise = constants.producer(node.input[0])
    if quantise is None or not is_standard(quantise, "QuantizeLinear"):
        return False
    same = [*quantise.input[1:]] == [*node.input[1:]] and all(
        int_attribute(quantise, name, default) == int_attribute(node, name, default)
        for name, default in (("axis", 1), ("block_size", 0))
    )
    return same and (scale.dtype.itemsize >= 4 or integers.dtype.itemsize == 1)


def _expression(name: str, constants: Constants) -> Iterator[onnx.NodeProto]:
    """The nodes that compute a constant."""
    waiting, seen = [name], {name}
    while waiting:
        node = constants.producer(waiting.pop())
        if node is None:
            continue
        yield node
        new = {read for read in node.input if read} - seen
        seen |= new
        waiting += new


def integer_map_stop(node: onnx.NodeProto, constants: Constants) -> Stop | None:
    """Why nothing moves past a Mul that makes floats of what ConvInteger or MatMulInteger computes; None for any other.

    Args:
        node: The node.
        constants: The constants of its graph.
    """
    for name in node.input if is_standard(node, "Mul") else ():
        source = constants.producer(name)
        if source is not None and is_standard(source, "Cast"):
            source = constants.producer(source.input[0])
        if source is not None and is_standard(source, "ConvInteger", "MatMulInteger"):
            what = f"{source.op_type} '{label(source)}' before {node.op_type} '{label(node)}'"
            return Stop(StopCode.QUANTIZED, f"{what} computes integers, which take no scale and no shift")
    return None
