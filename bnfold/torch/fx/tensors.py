"""Torch tensors as numpy arrays and back, bit for bit: bfloat16 and the 8-bit floats go through `ml_dtypes`."""

from collections.abc import Iterable, Iterator

import ml_dtypes
import numpy as np
import torch

from bnfold.algebra.rounding import Array, DType

_DTYPES: dict[torch.dtype, DType] = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float8_e4m3fn: np.dtype(ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: np.dtype(ml_dtypes.float8_e5m2),
    torch.uint8: np.dtype(np.uint8),
    torch.int8: np.dtype(np.int8),
    torch.int16: np.dtype(np.int16),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
    torch.bool: np.dtype(np.bool_),
    torch.complex64: np.dtype(np.complex64),
    torch.complex128: np.dtype(np.complex128),
}
_TORCH_DTYPES = {dtype: torch_dtype for torch_dtype, dtype in _DTYPES.items()}
_CARRIERS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}
"""Types that torch does not hand over to numpy, and what their bits travel as."""


def numpy_dtype(dtype: torch.dtype) -> DType | None:
    """What numpy, with ml_dtypes, calls an element type; None if it has none like it."""
    return _DTYPES.get(dtype)


def to_numpy(tensor: torch.Tensor) -> Array:
    """The values of a dense tensor; on a CPU they share its memory.

    Raises:
        KeyError: Its element type is none that numpy or ml_dtypes knows.
    """
    dtype = _DTYPES[tensor.dtype]
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    carrier = _CARRIERS.get(tensor.dtype)
    if carrier is None:
        array: Array = plain.numpy()
        return array
    bits: Array = plain.view(carrier).numpy()
    return bits.view(dtype)


def to_torch(array: Array, device: torch.device | str = "cpu", *, copy: bool = True) -> torch.Tensor:
    """A tensor with the values of an array, bit for bit.

    Args:
        array: Any shape (0-d stays 0-d).
        device: Where the tensor is to be.
        copy: Whether it has to have memory of its own; without, a tensor on a CPU may share that of the array.

    Raises:
        KeyError: Torch has no such element type.
    """
    dtype = _TORCH_DTYPES[array.dtype]
    carrier = _CARRIERS.get(dtype)
    contiguous = np.array(array, order="C") if copy else np.asarray(array, order="C")
    if carrier is None:
        return torch.from_numpy(contiguous).to(device)
    bits = contiguous.view(_DTYPES[carrier])
    return torch.from_numpy(bits).view(dtype).to(device)


def named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers of a module, under all of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def count_parameters(tensors: Iterable[object]) -> int:
    """How many floating-point numbers tensors hold; what is no tensor is passed over."""
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.is_floating_point())


def memory(tensor: torch.Tensor) -> int:
    """Where the elements of a tensor are; views of one tensor share it."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse, or of a subclass that has no storage
        return id(tensor)
