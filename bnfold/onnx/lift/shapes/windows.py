"""Sizes behind transposed convolutions and pools, where onnx's inference finds others than runtimes compute."""

from collections.abc import Iterator

import onnx
from onnx import helper

from bnfold.onnx.lift.types import Shape, ValueTypes, shape_in, types_by_graph
from bnfold.onnx.proto.names import int_attribute, ints_attribute, is_standard, nested, string_attribute

_POOLS = ("MaxPool", "AveragePool", "LpPool")


def mend_sizes(main: onnx.GraphProto, inferred: onnx.GraphProto) -> bool:
    """Gives operators pads with which onnx's inference comes to the sizes that runtimes compute.

    Of a ConvTranspose with an `output_shape` that cuts off more than its input has, it makes a value of fewer axes; of
    a pool that rounds up, or is padded to its size with a dilation, one of more elements than there are.

    Args:
        main: The main graph of a skeleton.
        inferred: The same after inference.

    Returns:
        Whether there was any.
    """
    mended = False
    for graph, types in zip(nested(main), types_by_graph(inferred), strict=True):
        for node in graph.node:
            if is_standard(node, "ConvTranspose"):
                mended |= _mend_transposed(node, types)
            elif is_standard(node, *_POOLS):
                mended |= _mend_pool(node, types)
    return mended


def _mend_transposed(node: onnx.NodeProto, types: ValueTypes) -> bool:
    wanted = ints_attribute(node, "output_shape")
    source, weight = (shape_in(types, name) for name in node.input[:2]) if wanted else (None, None)
    if source is None or weight is None or not len(source) == len(weight) == len(wanted) + 2:
        return False
    read = source[2:]
    if all(not isinstance(size, int) or size <= given for size, given in zip(read, wanted, strict=True)):
        return False
    whole = _whole_sizes(node, read, weight[2:])
    cut = [0 if size is None else size - given for size, given in zip(whole, wanted, strict=True)]
    _forget(node, "output_shape", "auto_pad", "pads")
    node.attribute.append(helper.make_attribute("pads", [*cut, *[0] * len(cut)]))
    return True


def _whole_sizes(node: onnx.NodeProto, read: Shape, kernel: Shape) -> list[int | None]:
    """The spatial sizes that a ConvTranspose gives without pads, where they are known."""
    ones = (1,) * len(read)
    strides, dilations = (ints_attribute(node, name) or ones for name in ("strides", "dilations"))
    added = ints_attribute(node, "output_padding") or (0,) * len(read)
    return [
        stride * (size - 1) + dilation * (taps - 1) + 1 + more
        if isinstance(size, int) and isinstance(taps, int)
        else None
        for size, taps, stride, dilation, more in zip(read, kernel, strides, dilations, added, strict=True)
    ]


def _mend_pool(node: onnx.NodeProto, types: ValueTypes) -> bool:
    source, result = (shape_in(types, name) for name in (node.input[0], node.output[0]))
    if source is None or result is None or len(source) != len(result):
        return False
    sizes = [*_pooled(node, source[2:])]
    if len(sizes) != len(result[2:]) or all(
        size is None or not isinstance(believed, int) or size == believed
        for size, believed in zip(sizes, result[2:], strict=True)
    ):
        return False
    # With strides of one, what a window takes beyond an element is missing behind it, and a pad is there in addition.
    more = [
        size - read if isinstance(read, int) and size is not None else 0
        for size, read in zip(sizes, source[2:], strict=True)
    ]
    _forget(node, "kernel_shape", "strides", "dilations", "auto_pad", "ceil_mode", "pads")
    node.attribute.append(helper.make_attribute("kernel_shape", [1 + max(0, -size) for size in more]))
    node.attribute.append(helper.make_attribute("pads", [*[0] * len(more), *(max(0, size) for size in more)]))
    return True


def _pooled(node: onnx.NodeProto, read: Shape) -> Iterator[int | None]:
    """The spatial sizes that onnxruntime computes for a pool, None where that of the input is not known."""
    kernel = ints_attribute(node, "kernel_shape")
    ones, none = (1,) * len(read), (0,) * 2 * len(read)
    strides, dilations = (ints_attribute(node, name) or ones for name in ("strides", "dilations"))
    auto_pad = string_attribute(node, "auto_pad", "NOTSET")
    pads = (ints_attribute(node, "pads") if auto_pad == "NOTSET" else ()) or none
    if {len(kernel), len(strides), len(dilations), len(pads) / 2} != {len(read)} or min(*strides, *dilations) < 1:
        return
    befores, afters = pads[: len(read)], pads[len(read) :]
    for size, taps, stride, dilation, before, after in zip(
        read, kernel, strides, dilations, befores, afters, strict=True
    ):
        if not isinstance(size, int):
            yield None
            continue
        pad = before, after
        if auto_pad.startswith("SAME"):
            padded = max(0, (-(-size // stride) - 1) * stride + taps - size)
            less, more = padded // 2, padded - padded // 2
            pad = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
        room = size + sum(pad) - dilation * (taps - 1) - 1
        count = room // stride + 1
        if int_attribute(node, "ceil_mode", 0):
            count = -(-room // stride) + 1
            count -= (count - 1) * stride >= size + pad[0]  # no window begins behind the last element
        yield count


def _forget(node: onnx.NodeProto, *names: str) -> None:
    kept = [given for given in node.attribute if given.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)
