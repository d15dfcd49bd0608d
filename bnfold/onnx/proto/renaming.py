"""Inputs and outputs of one model under the names that another has for them, as tools rename them in an export."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import onnx
from onnx import helper

from bnfold.errors import UsageError, perhaps
from bnfold.onnx.proto.names import defined_names

Names = Mapping[str, str]
"""For inputs and outputs of the original, by name and in its order, what the other model calls them."""


def match_names(original: onnx.ModelProto, other: onnx.ModelProto, given: Names) -> dict[str, str]:
    """What another model calls the inputs and outputs of the original, where that is something else.

    What the caller does not say goes by position, if there are equally many, the element types and shapes agree at each
    place, and no name stands for another value in the other model.

    Args:
        original: The original.
        other: The other model.
        given: What the caller says.

    Returns:
        An entry for each that has another name; none where position does not settle it.

    Raises:
        UsageError: The caller names something that there is not.
    """
    found: dict[str, str] = {}
    taken = set(defined_names(other.graph))
    known = [*_faces(original)], [*_faces(other)]
    for name, face in given.items():
        for wanted, model, which in ((name, known[0], "the original"), (face, known[1], "the other model")):
            names = [value.name for values in model for value in values]
            if wanted not in names:
                raise UsageError(
                    f"--map {name}={face}: {which} has no input or output {wanted!r}", hint=perhaps(wanted, names)
                )
        found[name] = face
    for mine, theirs in zip(*known, strict=True):
        rest = [value for value in mine if value.name not in found]
        others = [value for value in theirs if value.name not in found.values()]
        if len(rest) == len(others) and all(map(_alike, rest, others)):
            renamed = _renamed([value.name for value in rest], [value.name for value in others])
            found |= {} if renamed.keys() & taken else renamed
    order = [value.name for values in known[0] for value in values]
    return {name: found[name] for name in order if name != found.get(name, name)}


def rename_interface(proto: onnx.ModelProto, names: Names) -> None:
    """Gives inputs and outputs the names of the original, in place, and these outputs its order.

    Each comes with an Identity, so that nothing inside has to have another name.

    Args:
        proto: The other model.
        names: What `match_names` found.

    Raises:
        UsageError: A name stands for another value in the model.
    """
    faces, order = {face: name for name, face in names.items()}, {name: index for index, name in enumerate(names)}
    taken = set(defined_names(proto.graph))
    for face, name in faces.items():
        if name in taken:
            raise UsageError(f"{face!r} cannot be called {name!r}, for the model has another value of that name")
    for value in proto.graph.input:
        if value.name in faces:
            proto.graph.node.insert(0, helper.make_node("Identity", [faces[value.name]], [value.name]))
            value.name = faces[value.name]
    for value in proto.graph.output:
        if value.name in faces:
            proto.graph.node.append(helper.make_node("Identity", [value.name], [faces[value.name]]))
            value.name = faces[value.name]
    places = [place for place, value in enumerate(proto.graph.output) if value.name in names]
    values = sorted((deepcopy(proto.graph.output[place]) for place in places), key=lambda value: order[value.name])
    for place, value in zip(places, values, strict=True):
        proto.graph.output[place].CopyFrom(value)


def _faces(model: onnx.ModelProto) -> Iterator[Sequence[onnx.ValueInfoProto]]:
    """The inputs that have to be fed, and the outputs."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    yield [value for value in model.graph.input if value.name not in stored]
    yield [*model.graph.output]


def _renamed(mine: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Names by position; none where the other order of the same names would be another answer."""
    pairs = {name: face for name, face in zip(mine, theirs, strict=True) if name != face}
    return {} if pairs.keys() & set(theirs) else pairs


def _alike(one: onnx.ValueInfoProto, other: onnx.ValueInfoProto) -> bool:
    """Whether element types and shapes agree; a size that is open agrees with any that is."""
    first, second = one.type.tensor_type, other.type.tensor_type
    if one.type.WhichOneof("value") != "tensor_type" or first.elem_type != second.elem_type:
        return False
    return first.HasField("shape") and second.HasField("shape") and _sizes(first) == _sizes(second)


def _sizes(tensor: onnx.TypeProto.Tensor) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
