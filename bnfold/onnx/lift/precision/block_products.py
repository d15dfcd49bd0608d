"""MatMulNBits of onnxruntime: a matrix product whose weight is packed in few bits, with a scale for each block.

    y = x · Wᵀ + b        W[n, k] = d[n, k // block] · (q[n, k] − z[n, k // block])

Integers are packed low bits first, each block, and each row of zero points, in bytes of its own. Without zero points, z
is the middle of the range. What multiplies a row n of W multiplies its scales d; what multiplies x along k has no place
(see `bnfold.algebra.quantised`).
"""

from math import prod

import ml_dtypes
import numpy as np
import onnx

from bnfold.algebra.linear_map import LinearMap
from bnfold.algebra.quantised import QuantisedTensor
from bnfold.algebra.rounding import STORAGE_DTYPES, Array, DType
from bnfold.algebra.tensor import ArrayTensor
from bnfold.onnx.lift.constants import Constant, Constants
from bnfold.onnx.proto.names import int_attribute, label
from bnfold.reasons import Stop, StopCode

_TYPES: dict[int, DType] = {2: np.dtype(ml_dtypes.uint2), 4: np.dtype(ml_dtypes.uint4), 8: np.dtype(np.uint8)}
_WEIGHT, _SCALES, _ZERO_POINTS, _ORDER, BIAS = range(1, 6)
_COMPUTES_IN_INT8 = 4
_DEFAULT_BITS = 4


def is_block_product(node: onnx.NodeProto) -> bool:
    """Whether a node is a MatMulNBits."""
    named = node.domain == "com.microsoft" and node.op_type == "MatMulNBits"
    return named and len(node.input) > _SCALES and all(node.input[: _SCALES + 1])


def lift_block_product(node: onnx.NodeProto, bias: Constant | None, constants: Constants) -> LinearMap | Stop:
    """Reads a MatMulNBits.

    Args:
        node: The node.
        bias: Its bias, its own or that of an Add behind it.
        constants: The constants of its graph.

    Returns:
        The map, or the reason that its weight cannot change.
    """
    weight = _weight(node, constants)
    if isinstance(weight, Stop):
        return weight
    rounds = int_attribute(node, "accuracy_level", 0) == _COMPUTES_IN_INT8
    return LinearMap(
        weight=weight,
        bias=bias,
        partial_kernel="rounds its input to integers by itself" if rounds else "",
        bias_is_extra=not _given(node, BIAS),
    )


def _weight(node: onnx.NodeProto, constants: Constants) -> QuantisedTensor | Stop:
    which = f"the weight '{node.input[_WEIGHT]}' of {node.op_type} '{label(node)}'"
    rows, columns, block = (int_attribute(node, name, 0) for name in ("N", "K", "block_size"))
    bits = int_attribute(node, "bits", _DEFAULT_BITS)
    if any(given.ref_attr_name for given in node.attribute):
        return Stop(StopCode.WEIGHT_NOT_CONSTANT, f"{which} depends on parameters of a function")
    if (
        bits not in _TYPES
        or min(rows, columns, block) < 1
        or block * bits % 8
        or int_attribute(node, "weight_prepacked", 0)
    ):
        return Stop(StopCode.QUANTIZED_WEIGHT, f"{which} is packed in a way that is not understood")
    if _given(node, _ORDER):
        return Stop(StopCode.QUANTIZED_WEIGHT, f"{which} has its blocks in an order of its own (g_idx)")
    found = [constants.find(node.input[at]) for at in (_WEIGHT, _SCALES, _ZERO_POINTS) if _given(node, at)]
    if any(constant is not None and constant.overridable for constant in found):
        return Stop(StopCode.OVERRIDABLE, f"{which} is a model input that a caller may override")
    if None in found:
        return Stop(StopCode.WEIGHT_NOT_CONSTANT, f"{which} is not a constant")
    packed, scales, *zeros = [constant for constant in found if constant is not None]
    blocks = -(-columns // block)
    zero_size = rows * (blocks if zeros and zeros[0].dtype == scales.dtype else -(-blocks * bits // 8))
    sizes = [rows * blocks * block * bits // 8, rows * blocks, *([zero_size] if zeros else [])]
    if [prod(constant.shape) for constant in (packed, scales, *zeros)] != sizes or scales.dtype not in STORAGE_DTYPES:
        return Stop(StopCode.QUANTIZED_WEIGHT, f"{which} is packed in a way that is not understood")
    dtype = _TYPES[bits]
    zero = np.full((rows, blocks), 1 << (bits - 1), dtype)
    if zeros:
        stored = zeros[0].read()
        zero = stored.reshape(rows, blocks) if stored.dtype == scales.dtype else _unpacked(stored, rows, blocks, dtype)
    return QuantisedTensor(
        integers=Constant((rows, columns), dtype, lambda: _unpacked(packed.read(), rows, columns, dtype)),
        scale=Constant((rows, blocks), scales.dtype, lambda: scales.read().reshape(rows, blocks)),
        zero_point=ArrayTensor(zero),
        axis=1,
        block=block,
        steps=(),
        simulated=False,
        along_an_axis=True,
    )


def parts_of(node: onnx.NodeProto, weight: QuantisedTensor, constants: Constants) -> list[tuple[int, Array]]:
    """Packs a weight as a node wants it.

    Args:
        node: The MatMulNBits.
        weight: Its new weight, of the shape of the old one.
        constants: The constants of its graph.

    Returns:
        The positions of inputs, and their values.
    """
    integers, scale = weight.integers.read(), weight.scale.read()
    rows, columns = integers.shape
    old_scales = constants.find(node.input[_SCALES])
    shape = scale.shape if old_scales is None else old_scales.shape
    padded = np.zeros((rows, scale.shape[1] * weight.block), integers.dtype)
    padded[:, :columns] = integers
    bits = _bits(integers.dtype)
    parts = [
        (_WEIGHT, _packed(padded).reshape(rows, scale.shape[1], weight.block * bits // 8)),
        (_SCALES, scale.reshape(shape)),
    ]
    if weight.zero_point is None:
        return parts
    zero = weight.zero_point.read()
    if _given(node, _ZERO_POINTS) or (zero != np.array(1 << (bits - 1)).astype(zero.dtype)).any():
        old = constants.find(node.input[_ZERO_POINTS]) if _given(node, _ZERO_POINTS) else None
        stored = zero if zero.dtype == scale.dtype else _packed(zero)
        rank = len(shape) if old is None else len(old.shape)
        parts.append((_ZERO_POINTS, stored if rank == stored.ndim else stored.reshape(-1)))
    return parts


def _given(node: onnx.NodeProto, position: int) -> bool:
    return len(node.input) > position and bool(node.input[position])


def _bits(dtype: DType) -> int:
    return next(bits for bits, known in _TYPES.items() if known == dtype)


def _unpacked(packed: Array, rows: int, columns: int, dtype: DType) -> Array:
    """Integers out of bytes, the first `columns` of each row."""
    bits = _bits(dtype)
    in_bytes = packed.reshape(rows, -1).astype(np.uint8)
    parts = [(in_bytes >> np.uint8(low)) & np.uint8((1 << bits) - 1) for low in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(rows, -1)[:, :columns].astype(dtype)


def _packed(integers: Array) -> Array:
    """Bytes of integers; what is missing at the end of a row is zero."""
    bits = _bits(integers.dtype)
    per_byte = 8 // bits
    rows, columns = integers.shape
    padded = np.zeros((rows, -(-columns // per_byte), per_byte), np.uint8)
    padded.reshape(rows, -1)[:, :columns] = integers.astype(np.uint8)
    packed = np.zeros(padded.shape[:2], np.uint8)
    for place in range(per_byte):
        packed |= padded[..., place] << np.uint8(place * bits)
    return packed
