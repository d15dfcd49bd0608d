"""References to tensors: values, sizes, and what happens when they do not fit."""

import ml_dtypes
import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

from bnfold.errors import BnfoldError, ModelLoadError
from bnfold.onnx.file.load import OnnxModel, from_proto, load
from bnfold.onnx.file.save import save
from bnfold.onnx.file.tensors import TensorStore, expected_nbytes

T = onnx.TensorProto

RAW_TYPES = sorted(number for name, number in T.DataType.items() if name not in ("UNDEFINED", "STRING"))


def random_tensor(data_type: int, dims: tuple[int, ...], name: str = "w") -> onnx.TensorProto:
    """A tensor of valid random raw data (bool only 0 and 1, the last byte without stray padding bits)."""
    dtype = oh.tensor_dtype_to_np_dtype(data_type)
    rng = np.random.default_rng(data_type)
    if dtype.itemsize == 1 and dtype.kind == "V":
        values = rng.integers(0, 2, dims).astype(np.float32).astype(dtype)
    elif dtype == np.bool_:
        values = rng.integers(0, 2, dims).astype(dtype)
    else:
        count = int(np.prod(dims))
        values = rng.integers(0, 100, count * dtype.itemsize, dtype=np.uint8).view(dtype).reshape(dims)
    return onh.from_array(values, name)


def model_of(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    return oh.make_model(oh.make_graph([], "g", [], [], list(tensors)))


def loaded(tmp_path, *tensors: onnx.TensorProto) -> OnnxModel:
    onnx.save(model_of(*tensors), tmp_path / "m.onnx")
    return load(tmp_path / "m.onnx")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in shape, dtype and every bit."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_every_type_is_tried() -> None:
    assert {T.FLOAT, T.FLOAT16, T.BFLOAT16, T.DOUBLE, T.INT4, T.UINT4, T.FLOAT8E4M3FN, T.COMPLEX128} <= set(RAW_TYPES)


@pytest.mark.parametrize("data_type", RAW_TYPES, ids=T.DataType.Name)
@pytest.mark.parametrize("dims", [(4099, 3), (1, 8193)])
def test_values_of_every_type(data_type: int, dims: tuple[int, ...], tmp_path) -> None:
    tensor = random_tensor(data_type, dims)
    expected = onh.to_array(tensor)
    assert expected_nbytes(tensor) == len(tensor.raw_data) > 1024
    from_file = loaded(tmp_path, tensor)
    in_memory = from_proto(model_of(tensor))
    for model in (from_file, in_memory):
        reference = model.proto.graph.initializer[0]
        assert not reference.HasField("raw_data")
        assert model.store.nbytes(reference) == len(tensor.raw_data)
        assert same(model.array(reference), expected)
        assert same(np.concatenate([rows.copy() for rows in model.store.rows(reference, 1000)]), expected)


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("data_type", RAW_TYPES, ids=T.DataType.Name)
def test_deferred_values_of_every_type(data_type: int, in_parts: bool, tmp_path) -> None:
    tensor = random_tensor(data_type, (37, 11))
    values = onh.to_array(tensor)
    store = TensorStore()
    parts = (lambda: iter([values[:24], values[24:]])) if in_parts else None
    deferred = store.defer("w", (37, 11), data_type, lambda: values, parts)
    assert same(store.array(deferred), values)
    save(OnnxModel(model_of(deferred), store), tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").graph.initializer[0] == tensor


def test_deferred_values_are_in_c_order_however_they_were_computed() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3).transpose(2, 0, 1)
    store = TensorStore()
    array = store.array(store.defer("w", values.shape, T.FLOAT, lambda: values))
    assert array.flags.c_contiguous
    assert same(array, values)


@pytest.mark.parametrize("values", [np.float32(3), np.zeros((0, 4), np.float32), np.zeros((2, 0), np.int64)])
def test_scalars_and_empty_tensors(values: np.ndarray, tmp_path) -> None:
    values = np.asarray(values)
    tensor = TensorStore.embed("w", values)
    assert list(tensor.dims) == list(values.shape)
    model = loaded(tmp_path, tensor)
    assert same(model.array(model.proto.graph.initializer[0]), values)
    deferred = model.store.defer("w", values.shape, tensor.data_type, lambda: values)
    assert same(model.array(deferred), values)
    model.proto.graph.initializer[0].CopyFrom(deferred)
    save(model, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0] == tensor


def test_values_in_typed_fields(tmp_path) -> None:
    values = np.linspace(-1, 1, 4000, dtype=np.float32)
    tensor = oh.make_tensor("w", T.FLOAT, [4000], values)
    assert tensor.float_data
    model = loaded(tmp_path, tensor)
    assert same(model.array(model.proto.graph.initializer[0]), values)
    assert model.store.nbytes(tensor) == 16000


def test_strings(tmp_path) -> None:
    tensor = oh.make_tensor("w", T.STRING, [2], [b"one", b"three"])
    model = loaded(tmp_path, tensor)
    assert model.array(model.proto.graph.initializer[0]).tolist() == ["one", "three"]
    assert model.store.nbytes(tensor) == 8


def test_the_shape_of_a_reference_may_be_edited_if_it_fits(tmp_path) -> None:
    values = np.arange(600, dtype=np.float32).reshape(20, 30)
    for model in (loaded(tmp_path, onh.from_array(values, "w")), from_proto(model_of(onh.from_array(values, "w")))):
        reference = model.proto.graph.initializer[0]
        reference.dims[:] = [30, 20]
        assert same(model.array(reference), values.reshape(30, 20))
        reference.dims[:] = [30, 21]
        with pytest.raises(ModelLoadError, match=r"'w' of shape \[30, 21\] needs 2520 bytes of data, but has 2400"):
            model.array(reference)


def test_deferred_values_are_computed_only_when_asked_for(tmp_path) -> None:
    calls = []
    store = TensorStore()
    model = OnnxModel(
        model_of(store.defer("w", [3], T.FLOAT, lambda: calls.append(1) or np.ones(3, np.float32))), store
    )
    model.copy()
    assert not calls
    save(model, tmp_path / "m.onnx")
    assert calls == [1]


@pytest.mark.parametrize("computed", [np.ones(4, np.float32), np.ones((3, 1), np.float32), np.ones(3, np.float64)])
def test_deferred_values_must_be_as_announced(computed: np.ndarray, tmp_path) -> None:
    store = TensorStore()
    tensor = store.defer("w", [3], T.FLOAT, lambda: computed)
    with pytest.raises(BnfoldError, match="announced") as caught:
        store.array(tensor)
    assert caught.value.exit_code == 70
    with pytest.raises(BnfoldError, match="announced"):
        save(OnnxModel(model_of(tensor), store), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_non_contiguous_values_are_written_in_order(tmp_path) -> None:
    values = np.arange(600, dtype=np.float32).reshape(20, 30).T
    store = TensorStore()
    save(OnnxModel(model_of(store.defer("w", [30, 20], T.FLOAT, lambda: values)), store), tmp_path / "m.onnx")
    assert np.array_equal(onh.to_array(onnx.load(tmp_path / "m.onnx").graph.initializer[0]), values)


def test_bfloat16_is_of_ml_dtypes(tmp_path) -> None:
    values = np.arange(1000).astype(ml_dtypes.bfloat16)
    model = loaded(tmp_path, onh.from_array(values, "w"))
    assert model.array(model.proto.graph.initializer[0]).dtype == ml_dtypes.bfloat16


def test_a_store_can_include_another(tmp_path) -> None:
    stores = [TensorStore(), TensorStore()]
    values = [np.full(3, 1, np.float32), np.full(3, 2, np.float32)]
    tensors = [s.defer(f"w{v[0]}", [3], T.FLOAT, lambda v=v: v) for s, v in zip(stores, values, strict=True)]
    assert stores[0].find(tensors[1]) is None
    stores[0].include(stores[1])
    assert [stores[0].array(t)[0] for t in tensors] == [1, 2]
    save(OnnxModel(model_of(*tensors), stores[0]), tmp_path / "m.onnx")
    assert [onh.to_array(t)[0] for t in onnx.load(tmp_path / "m.onnx").graph.initializer] == [1, 2]


def test_references_of_two_loads_differ(tmp_path) -> None:
    tensor = random_tensor(T.FLOAT, (1000,))
    first, second = loaded(tmp_path, tensor), load(tmp_path / "m.onnx")
    reference = first.proto.graph.initializer[0]
    assert second.store.find(reference) is None
    with pytest.raises(ModelLoadError, match="was not loaded"):
        second.array(reference)


MALFORMED = {
    "unknown type": T(name="w", dims=[2], data_type=77, raw_data=b"12345678"),
    "no type": T(name="w", dims=[2], raw_data=b"12345678"),
    "too few bytes": T(name="w", dims=[3], data_type=T.FLOAT, raw_data=b"12345678"),
    "negative dimension": T(name="w", dims=[-1, -2], data_type=T.FLOAT, raw_data=b"12345678"),
    "too few values": T(name="w", dims=[3], data_type=T.FLOAT, float_data=[1, 2]),
    "a segment": T(name="w", dims=[1], data_type=T.FLOAT, float_data=[1], segment=T.Segment(begin=0, end=1)),
}


@pytest.mark.parametrize("tensor", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_tensors_are_refused_in_a_sentence(tensor: onnx.TensorProto) -> None:
    with pytest.raises(ModelLoadError, match="'w'"):
        TensorStore().array(tensor)


def test_the_size_of_a_malformed_tensor_is_refused_as_well() -> None:
    for name in ("unknown type", "no type", "negative dimension"):
        with pytest.raises(ModelLoadError, match="'w'"):
            TensorStore().nbytes(MALFORMED[name])


def test_a_held_tensor_that_is_edited_is_noticed(tmp_path) -> None:
    proto = model_of(random_tensor(T.FLOAT, (1000,)))
    model = from_proto(proto)
    proto.graph.initializer[0].raw_data = b""
    with pytest.raises(ModelLoadError, match="changed"):
        save(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changes_is_noticed(tmp_path) -> None:
    tensor = random_tensor(T.FLOAT, (1000,))
    model = loaded(tmp_path, tensor)
    onnx.save(model_of(tensor, random_tensor(T.FLOAT, (10,), "v")), tmp_path / "m.onnx")
    with pytest.raises(ModelLoadError, match="has changed since it was loaded"):
        model.array(model.proto.graph.initializer[0])
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(ModelLoadError, match="cannot be read"):
        model.array(model.proto.graph.initializer[0])
