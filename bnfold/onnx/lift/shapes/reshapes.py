"""Shapes that a model computes for its Reshapes: as far as each size can be followed.

onnx's inference follows them in newer opsets only, and gives up where one size is not known. Here every size is
followed by itself: in Concat(n, 3, 2, -1) three of four are known, and n is that of an input.
"""

from collections.abc import Mapping
from math import prod

import onnx

from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.lift.types import Shape, ValueTypes, declare, dtype_in, element_type, shape_in
from bnfold.onnx.proto.names import find_attribute, int_attribute, is_standard

_PASSES_ON = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten")
"""Operators that keep the numbers and their order."""
_MOST_SIZES = 64
_LONGEST_CHAIN = 32


def note_reshapes(graph: onnx.GraphProto, constants: Constants, types: ValueTypes, symbols: frozenset[str]) -> bool:
    """Declares in a skeleton the results of Reshape of which more is known than inference knows.

    Args:
        graph: The main graph of the skeleton.
        constants: The constants of the model.
        types: What inference knows.
        symbols: The names of sizes that stay what they are when inference runs again.

    Returns:
        Whether there was anything.
    """
    makers = {name: node for node in graph.node for name in node.output if name}
    places = {value.name: value for value in (*graph.value_info, *graph.output)}
    noted = False
    for node in graph.node:
        if not is_standard(node, "Reshape") or len(node.input) < 2:
            continue
        name = node.output[0]
        old, dtype = types.get(name, (None, ""))
        if old is not None and all(isinstance(size, int) for size in old):
            continue
        asked = _Follower(makers, constants, types).sizes(node.input[1])
        source = shape_in(types, node.input[0])
        found = (
            None if asked is None else _reshaped(asked, source, keeps_zero=bool(int_attribute(node, "allowzero", 0)))
        )
        dtype = dtype or dtype_in(types, node.input[0])
        if found is None or not dtype or (old is not None and len(old) != len(found)):
            continue
        found = tuple(size if isinstance(size, int) or size in symbols else None for size in found)
        merged = (
            found
            if old is None
            else tuple(
                size if isinstance(size, int) or new is None else new for size, new in zip(old, found, strict=True)
            )
        )
        if merged != old:
            place = places[name] = places.get(name) or graph.value_info.add(name=name)
            place.type.tensor_type.elem_type = element_type(dtype)
            declare(place, merged)
            noted = True
    return noted


def _reshaped(asked: Shape, source: Shape | None, *, keeps_zero: bool) -> Shape:
    """What a Reshape gives that is asked for these sizes; -1 is what is left over, 0 the size of the input there."""
    sizes = [
        (source[axis] if source is not None and axis < len(source) else None) if size == 0 and not keeps_zero else size
        for axis, size in enumerate(asked)
    ]
    if -1 in sizes:
        others = [size for size in sizes if size != -1]
        known = source is not None and all(isinstance(size, int) and size > 0 for size in (*source, *others))
        total = prod(size for size in source or () if isinstance(size, int))
        sizes[sizes.index(-1)] = total // prod(size for size in others if isinstance(size, int)) if known else None
    return tuple(sizes)


class _Follower:
    """Finds out what a vector of sizes holds: a number, the symbol of a size, or None for each element."""

    def __init__(self, makers: Mapping[str, onnx.NodeProto], constants: Constants, types: ValueTypes) -> None:
        self._makers, self._constants, self._types = makers, constants, types

    def sizes(self, name: str, steps: int = _LONGEST_CHAIN) -> Shape | None:
        """The elements of a vector or a scalar; None if even their number is not known."""
        found = self._constants.find(name) if self._constants.is_constant(name) else None
        if found is not None:
            if found.overridable or prod(found.shape) > _MOST_SIZES or found.dtype.kind not in "iu":
                return None
            return tuple(int(size) for size in found.read().reshape(-1))
        node = self._makers.get(name)
        if node is None or steps == 0:
            return None
        if is_standard(node, "Shape"):
            shape = shape_in(self._types, node.input[0])
            end = find_attribute(node, "end")
            return None if shape is None else shape[int_attribute(node, "start", 0) : None if end is None else end.i]
        if is_standard(node, *_PASSES_ON):
            return self.sizes(node.input[0], steps - 1)
        if is_standard(node, "Concat"):
            parts = [self.sizes(part, steps - 1) for part in node.input]
            return None if None in parts else tuple(size for part in parts for size in part or ())
        if is_standard(node, "Slice") and len(node.input) > 2:
            return self._sliced(node, steps - 1)
        if is_standard(node, "Gather"):
            source, picked = (self.sizes(part, steps - 1) for part in node.input)
            if source is None or picked is None:
                return None
            known = [index for index in picked if isinstance(index, int) and -len(source) <= index < len(source)]
            return tuple(source[index] for index in known) if len(known) == len(picked) else None
        return self._length_only(name)

    def _sliced(self, node: onnx.NodeProto, steps: int) -> Shape | None:
        source = self.sizes(node.input[0], steps)
        given = [self.sizes(part, steps) for part in (*node.input[1:3], *node.input[4:5]) if part]
        bounds = [bound for part in given for bound in part or () if isinstance(bound, int)]
        step = bounds[2] if len(bounds) == 3 else 1
        if source is None or len(bounds) != len(given) or any(part is None or len(part) != 1 for part in given):
            return None
        return source[bounds[0] : bounds[1] : step] if step > 0 else None

    def _length_only(self, name: str) -> Shape | None:
        shape = shape_in(self._types, name)
        if shape is None or len(shape) > 1 or not all(isinstance(size, int) and size <= _MOST_SIZES for size in shape):
            return None
        return (None,) * prod(size for size in shape if isinstance(size, int))
