"""The wire scanner against google.protobuf: what it accepts means the same, and the rest is refused."""

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.errors import BnfoldError
from bnfold.onnx.file import wire
from bnfold.onnx.file.load import load


def everything(span_start: int, span_stop: int) -> bool:
    return True


def nothing(tensor: wire.WireTensor) -> None:
    return None


def read_all(data: bytes) -> list[wire.WireTensor]:
    """Every tensor that the scanner finds."""
    found: list[wire.WireTensor] = []
    wire.rewrite(wire.Memory(data), wanted=everything, replace=found.append)
    return found


def joined(data: bytes, pieces: list[wire.Piece]) -> bytes:
    return b"".join(p if isinstance(p, bytes) else data[p.start : p.stop] for p in pieces)


def tensor(name: str, elements: int = 4) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.arange(elements, dtype=np.float32), name)


def constant(name: str, elements: int = 4) -> onnx.NodeProto:
    return oh.make_node("Constant", [], [name], value=tensor(name, elements))


def every_place(elements: int = 4) -> onnx.ModelProto:
    """A model with a tensor in every place where ONNX allows one; the names tell which."""
    body = oh.make_graph([constant("in_body", elements)], "body", [], [], [tensor("body_init", elements)])
    sparse = oh.make_sparse_tensor(tensor("sparse_values"), tensor("sparse_indices"), [8])
    listed = oh.make_node("Custom", [], ["l"], domain="x", many=[tensor("listed_0"), tensor("listed_1")])
    graphs = oh.make_node("Custom", [], ["gs"], domain="x", bodies=[body, body])
    nodes = [
        constant("in_node", elements),
        oh.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
        oh.make_node("Constant", [], ["s"], sparse_value=sparse),
        listed,
        graphs,
    ]
    graph = oh.make_graph(nodes, "main", [], [], [tensor("main_init", elements)], sparse_initializer=[sparse])
    function = oh.make_function("x", "f", [], ["o"], [constant("in_function", elements)], [oh.make_opsetid("", 18)])
    function.attribute_proto.append(oh.make_attribute("default", tensor("function_default")))
    model = oh.make_model(graph, functions=[function])
    training = model.training_info.add()
    training.initialization.initializer.append(tensor("training_init"))
    training.algorithm.node.append(constant("in_training"))
    return model


def test_every_tensor_is_found() -> None:
    model = every_place()
    names = [onnx.TensorProto.FromString(found.bytes_without()).name for found in read_all(model.SerializeToString())]
    # each body stands four times: two branches of If, two graphs of a list
    expected = ["in_body", "body_init"] * 4 + ["sparse_values", "sparse_indices"] * 2
    expected += ["in_node", "listed_0", "listed_1", "main_init", "in_function", "function_default"]
    assert sorted(names) == sorted([*expected, "training_init", "in_training"])


def test_the_kind_tells_where_the_tensor_was() -> None:
    kinds = {
        onnx.TensorProto.FromString(found.bytes_without()).name: found.kind
        for found in read_all(every_place().SerializeToString())
    }
    assert kinds["main_init"] is kinds["body_init"] is wire.Kind.INITIALIZER
    assert kinds["in_node"] is kinds["listed_0"] is kinds["in_function"] is wire.Kind.ATTRIBUTE_TENSOR
    assert kinds["sparse_values"] is kinds["sparse_indices"] is wire.Kind.SPARSE_PART


def test_field_numbers_are_those_of_onnx() -> None:
    kinds = {
        wire.Kind.MODEL: onnx.ModelProto,
        wire.Kind.GRAPH: onnx.GraphProto,
        wire.Kind.NODE: onnx.NodeProto,
        wire.Kind.ATTRIBUTE: onnx.AttributeProto,
        wire.Kind.FUNCTION: onnx.FunctionProto,
        wire.Kind.TRAINING: onnx.TrainingInfoProto,
        wire.Kind.SPARSE: onnx.SparseTensorProto,
    }
    messages = {kind: cls.DESCRIPTOR.full_name for kind, cls in kinds.items()}
    messages |= dict.fromkeys(wire._TENSORS, onnx.TensorProto.DESCRIPTOR.full_name)
    for kind, cls in kinds.items():
        leads_on = {
            field.number: field.message_type.full_name
            for field in cls.DESCRIPTOR.fields
            if field.message_type and field.message_type.full_name in messages.values()
        }
        assert {n: messages[child] for n, child in wire._CHILDREN[kind].items()} == leads_on


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2**21 - 1, 2**21])
def test_length_prefixes_are_computed_anew(size: int) -> None:
    model = every_place()
    data = model.SerializeToString()

    def replace(found: wire.WireTensor) -> list[wire.Piece] | None:
        proto = onnx.TensorProto.FromString(found.bytes_without())
        if proto.name != "in_body":
            return None
        return [onnx.TensorProto(name="new", raw_data=b"\x01" * size).SerializeToString()]

    edited = onnx.ModelProto.FromString(
        joined(data, wire.rewrite(wire.Memory(data), wanted=everything, replace=replace))
    )
    for node in model.graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                for inner in body.node:
                    inner.attribute[0].t.CopyFrom(onnx.TensorProto(name="new", raw_data=b"\x01" * size))
    assert edited == model


def test_what_is_not_wanted_is_not_looked_at() -> None:
    data = every_place().SerializeToString()

    def fail(found: wire.WireTensor) -> None:
        raise AssertionError("looked at")

    assert wire.rewrite(wire.Memory(data), wanted=lambda start, stop: False, replace=fail) == [wire.Span(0, len(data))]


def test_a_tensor_given_twice_is_left_to_protobuf() -> None:
    attribute = b"".join(wire.header(5, len(part)) + part for part in (tensor("a").SerializeToString(),) * 2)
    node = wire.header(5, len(attribute)) + attribute
    graph = wire.header(1, len(node)) + node
    assert read_all(wire.header(7, len(graph)) + graph) == []


MALFORMED = {
    "a tag without its value": b"\x08",
    "a length without an end": b"\x3a\xff",
    "a length past the end": b"\x3a\x05abc",
    "a length of six bytes": b"\x3a\x80\x80\x80\x80\x80\x00",
    "a varint of eleven bytes": b"\x08" + b"\x80" * 10 + b"\x00",
    "field number zero": b"\x02\x00",
    "a tag of more than 32 bits": b"\xff\xff\xff\xff\x7f\x00",
    "a group": b"\x3b\x3c",
    "the end of a group": b"\x3c",
    "wire type 6": b"\x3e\x00",
    "wire type 7": b"\x3f\x00",
    "four bytes cut short": b"\x3d\x00\x00\x00",
    "eight bytes cut short": b"\x39\x00\x00\x00\x00\x00\x00\x00",
    "an inner field past the end of the outer one": b"\x3a\x02\x0a\x05aaaaa",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.rewrite(wire.Memory(data), wanted=everything, replace=nothing)


def nested(depth: int) -> bytes:
    """Graphs within graphs: each level is a GraphProto, a NodeProto and an AttributeProto."""
    graph = b""
    for _ in range(depth):
        attribute = wire.header(6, len(graph)) + graph
        node = wire.header(5, len(attribute)) + attribute
        graph = wire.header(1, len(node)) + node
    return wire.header(7, len(graph)) + graph


def test_deep_nesting_is_refused() -> None:
    wire.rewrite(wire.Memory(nested(32)), wanted=everything, replace=nothing)
    with pytest.raises(wire.WireError, match="nested"):
        wire.rewrite(wire.Memory(nested(34)), wanted=everything, replace=nothing)
    with pytest.raises(wire.WireError, match="nested"):
        wire.rewrite(wire.Memory(nested(5000)), wanted=everything, replace=nothing)


def test_too_many_fields_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\x08\x00" * 1000
    wire.rewrite(wire.Memory(data), wanted=everything, replace=nothing)
    monkeypatch.setattr(wire, "_FREE_FIELDS", 99)
    with pytest.raises(wire.WireError, match="tiny fields"):
        wire.rewrite(wire.Memory(data), wanted=everything, replace=nothing)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31 - 1, 2**63])
def test_varint_is_that_of_protobuf(value: int) -> None:
    encoder = onnx.OperatorSetIdProto(version=value) if value < 2**63 else None
    if encoder:
        assert encoder.SerializeToString() == b"\x10" + wire.varint(value)
    else:
        assert wire.varint(value) == b"\x80" * 9 + b"\x01"


class Counting(wire.Memory):
    """A source that notes how much was read."""

    bytes_read = 0

    def read(self, start: int, stop: int) -> bytes:
        self.bytes_read += stop - start
        return super().read(start, stop)


def test_weights_are_not_read() -> None:
    graph = oh.make_graph([], "g", [], [], [tensor(str(n), 1 << 18) for n in range(16)])
    source = Counting(oh.make_model(graph).SerializeToString())
    wire.rewrite(source, wanted=lambda start, stop: stop - start > 1024, replace=nothing)
    assert source.bytes_read < source.size / 50


def loaded(data: bytes, folder) -> onnx.ModelProto | None:
    """What bnfold makes of the bytes, all weights in place; None if it refuses them."""
    path = folder / "m.onnx"
    path.write_bytes(data)
    try:
        return load(path).materialize()
    except BnfoldError:
        return None


def parsed(data: bytes) -> onnx.ModelProto | None:
    try:
        return onnx.ModelProto.FromString(data)
    except DecodeError:
        return None


ORIGINAL = every_place(300).SerializeToString()


@settings(max_examples=200, deadline=None)
@given(stop=st.integers(0, len(ORIGINAL) - 1))
def test_truncated_anywhere(stop: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = ORIGINAL[:stop]
    ours = loaded(data, tmp_path_factory.getbasetemp())
    assert ours is None or ours == parsed(data)


@settings(max_examples=500, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, len(ORIGINAL) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_bytes_flipped_anywhere(flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    data = bytearray(ORIGINAL)
    for position, mask in flips:
        data[position] ^= mask
    ours = loaded(bytes(data), tmp_path_factory.getbasetemp())
    assert ours is None or ours == parsed(bytes(data))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    ours = loaded(data, tmp_path_factory.getbasetemp())
    assert ours is None or ours == parsed(data)
