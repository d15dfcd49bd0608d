"""Files of input data that are damaged, encrypted, or larger than they are: each is refused with a sentence."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnfold import input_spec
from bnfold.errors import ModelLoadError
from bnfold.system import memory
from bnfold.verification import load_inputs


class Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("ran",)


def npz(*, compressed: bool = False, **arrays: np.ndarray) -> bytearray:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return bytearray(file.getvalue())


def archive(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr("x.npy", content)
    return file.getvalue()


def npy(shape: str, data: bytes = b"", descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def encrypted() -> bytes:
    data = npz(x=np.zeros((1, 4), np.float32))
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def unknown_method() -> bytes:
    data = npz(x=np.zeros((1, 4), np.float32))
    data[8] = data[data.find(b"PK\x01\x02") + 10] = 99
    return bytes(data)


def flipped(place: int) -> bytes:
    data = npz(compressed=True, x=np.random.default_rng(0).standard_normal((1, 400)).astype(np.float32))
    data[place] ^= 0xFF
    return bytes(data)


ATTACKS: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: pickle.dumps(Evil()),
    "objects": lambda: bytes(npz(x=np.array([Evil()], object))),
    "empty": lambda: b"",
    "truncated": lambda: bytes(npz(x=np.zeros((1, 400), np.float32))[:900]),
    "encrypted": encrypted,
    "unknown method": unknown_method,
    "damaged stream": lambda: flipped(160),
    "damaged end": lambda: flipped(1200),
    "not an array": lambda: archive(b"hello"),
    "nested archive": lambda: archive(archive(b"hello")),
    "huge shape": lambda: archive(npy("(10000000000000,)")),
    "20 GB": lambda: archive(npy("(5000000000,)")),
    "overflowing shape": lambda: archive(npy("(99999999999999999999999,)", bytes(64))),
    "negative shape": lambda: archive(npy("(-1,)", bytes(64))),
    "70 dimensions": lambda: archive(npy("(" + "1," * 70 + ")", bytes(4))),
    "deep header": lambda: archive(b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000),
    "code in the header": lambda: archive(npy("(1,)", bytes(4), "__import__('os').mkdir('ran')")),
    "huge elements": lambda: archive(npy("(1,)", bytes(64), "'|V2000000000'")),
    "objects in fields": lambda: archive(npy("(1,)", bytes(64), "[('a', '<f4'), ('b', 'O')]")),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.npz").write_bytes(ATTACKS[name]())
    with pytest.raises(ModelLoadError) as caught:
        load_inputs(tmp_path / "data.npz")
    assert caught.value.exit_code == 3
    assert str(tmp_path / "data.npz") in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_more_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_left", lambda: 10**6)
    (tmp_path / "data.npz").write_bytes(archive(npy("(2000000,)", bytes(2_000_000), "'|u1'"), zipfile.ZIP_DEFLATED))
    with pytest.raises(ModelLoadError, match=r"unpacked, would take 2\.0 MB, and 1\.0 MB of memory are left"):
        load_inputs(tmp_path / "data.npz")


def test_more_than_is_in_proportion_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_spec, "_FREE_NBYTES", 1 << 16)
    zeros = np.zeros(1 << 20, np.uint8)
    np.savez(tmp_path / "plain.npz", x=zeros)
    np.savez_compressed(tmp_path / "data.npz", x=zeros)
    assert np.array_equal(load_inputs(tmp_path / "plain.npz")[0]["x"], zeros)
    with pytest.raises(ModelLoadError, match=r"out of all proportion to the file"):
        load_inputs(tmp_path / "data.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "i.npz")
    with pytest.raises(ModelLoadError, match="is not a regular file"):
        load_inputs(tmp_path / "i.npz")
