"""What a model returns, as arrays with names: tensors, and tuples, dicts, dataclasses and other objects of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from types import FunctionType, MethodType

import numpy as np
import torch

from bnfold.input_spec import Array
from bnfold.torch.capture.returned_values import attributes
from bnfold.torch.fx.tensors import numpy_dtype, to_numpy

_SINGLE = "output"
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, np.ndarray, torch.dtype, torch.device, torch.Size)
_NO_RESULT = (torch.nn.Module, type, FunctionType, MethodType)


def flatten(result: object, convert: Callable[[torch.Tensor], object] | None = None) -> dict[str, object]:
    """Every tensor, as an array, and every plain value of a result.

    Args:
        result: What a model returned.
        convert: What becomes of tensors, instead of arrays.

    Returns:
        Arrays and plain values by name: "output" for a tensor alone, else the keys, field names and positions that
        lead there, such as "logits" or "hidden_states.0". What is None is left out.
    """
    found: dict[str, object] = {}
    for path, value in _leaves(result, (), frozenset()):
        if value is not None:
            name = ".".join(path) or _SINGLE
            while name in found:  # {"a.b": …, "a": {"b": …}}
                name += "'"
            found[name] = (convert or to_array)(value) if isinstance(value, torch.Tensor) else value
    return found


def to_array(tensor: torch.Tensor) -> Array:
    """A copy of a tensor as an array in host memory; complex numbers become pairs along a last axis of two."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    plain = dense.resolve_conj().resolve_neg().cpu()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    if plain.is_quantized:
        plain = plain.dequantize()
    if numpy_dtype(plain.dtype) is None:
        plain = plain.to(torch.float32)
    return np.array(to_numpy(plain))


def _leaves(value: object, path: tuple[str, ...], above: frozenset[int]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every leaf with the way to it; an object that holds itself is followed once."""
    if isinstance(value, (torch.Tensor, *_PLAIN)):
        yield path, value
        return
    if isinstance(value, _NO_RESULT) or id(value) in above:
        return
    parts = _parts(value)
    if parts is None:
        yield path, value
        return
    for name, part in parts:
        yield from _leaves(part, (*path, name), above | {id(value)})


def _parts(value: object) -> list[tuple[str, object]] | None:
    """What an object is made of; None for something that only equality can tell about."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return [(str(index), part) for index, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    inside = {**getattr(value, "__dict__", {}), **attributes(value)}
    return list(inside.items()) if inside or hasattr(value, "__dict__") else None
