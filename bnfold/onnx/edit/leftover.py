"""The affines that stay, written as the frozen linear transform instead of BatchNormalization.

Two forms: a 1x1 depthwise Conv with bias, or Mul and Add. The Conv is one pass over memory and fuses with a following
Relu; it exists for values of rank 3 to 5 in float32 and float16, the types that runtimes have kernels for, and does not
run on an empty image. Everything else becomes Mul and Add. An Add of zeros is not written. Behind DequantizeLinear a
BatchNormalization stays as it is: runtimes quantise the weight of a Conv there, which nobody has calibrated.
"""

import onnx
from onnx import helper, numpy_helper

from bnfold.algebra.affine import Affine
from bnfold.algebra.rounding import Array
from bnfold.graph import AffineNode
from bnfold.onnx.proto.names import FreshNames, label
from bnfold.planning.leftover import mul_add_parts, stored, wants_convolution
from bnfold.planning.plan import Leftover

_CONV_DTYPES = ("float32", "float16")


def leftover_nodes(
    form: Leftover, node: AffineNode, affine: Affine, original: onnx.NodeProto, names: FreshNames
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]] | None:
    """Writes an affine as nodes of its own.

    Args:
        form: The form asked for.
        node: The node that stays.
        affine: Its affine, with what was composed into it.
        original: Its node in the model.
        names: Where new names come from.

    Returns:
        The nodes, from the input of `original` to its output, and their constants; None if it has to stay as it is.
    """
    source = node.inputs[0].producer
    if source is not None and source.op_type == "DequantizeLinear":
        form = Leftover.KEEP if affine is node.affine else Leftover.MUL_ADD
    numbers = stored(form, node, affine)
    if numbers is None:
        return None
    scale, shift = numbers
    base = names.fresh(f"{label(original)}_affine")
    ends = (node.inputs[0].name, node.outputs[0].name)
    if _is_convolution(form, node, affine):
        return _depthwise_conv(base, scale, shift, ends, names)
    return _mul_add(base, scale, shift, ends, names)


def written_as(form: Leftover, node: AffineNode, affine: Affine) -> str:
    """What `leftover_nodes` writes, in words; "" if the node stays as it is."""
    numbers = stored(form, node, affine)
    if numbers is None:
        return ""
    if _is_convolution(form, node, affine):
        return "a 1x1 depthwise Conv"
    return " and ".join(op_type for op_type, _ in mul_add_parts(*numbers))


def _is_convolution(form: Leftover, node: AffineNode, affine: Affine) -> bool:
    return wants_convolution(form, node) and 3 <= affine.rank <= 5 and node.inputs[0].dtype in _CONV_DTYPES


Written = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def _depthwise_conv(base: str, scale: Array, shift: Array, ends: tuple[str, str], names: FreshNames) -> Written:
    channels, kernel = scale.shape[1], (1,) * (scale.ndim - 2)
    tensors = [numpy_helper.from_array(scale.reshape(channels, 1, *kernel), names.fresh(f"{base}_weight"))]
    if shift.any():
        tensors.append(numpy_helper.from_array(shift.reshape(channels), names.fresh(f"{base}_bias")))
    inputs = [ends[0], *(tensor.name for tensor in tensors)]
    conv = helper.make_node("Conv", inputs, [ends[1]], name=base, group=channels, kernel_shape=kernel)
    return [conv], tensors


def _mul_add(base: str, scale: Array, shift: Array, ends: tuple[str, str], names: FreshNames) -> Written:
    parts = mul_add_parts(scale, shift)
    nodes, tensors = [], []
    source = ends[0]
    for op_type, array in parts:
        last = op_type == parts[-1][0]
        target = ends[1] if last else names.fresh(f"{base}_scaled")
        shape = array.shape[1:] if array.shape[0] == 1 else array.shape
        tensor = numpy_helper.from_array(array.reshape(shape), names.fresh(f"{base}_{op_type.lower()}"))
        name = base if last else names.fresh(f"{base}_{op_type.lower()}_node")
        nodes.append(helper.make_node(op_type, [source, tensor.name], [target], name=name))
        tensors.append(tensor)
        source = target
    return nodes, tensors
