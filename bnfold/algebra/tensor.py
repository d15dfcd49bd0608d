"""Constants that maps are made of, read when they are needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from bnfold.algebra.rounding import Array, DType


class Tensor(Protocol):
    """A constant that is read when it is needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, known without reading."""

    @property
    def dtype(self) -> DType:
        """The storage dtype, known without reading."""

    def read(self) -> Array:
        """The values."""


class RowwiseTensor:
    """What a `Tensor` is besides that can be read a few rows at a time, so that memory need not hold all of it."""

    __slots__ = ()

    def read_rows(self, count: int) -> Iterator[Array]:
        """The values, so many entries of the first axis at a time; each array is good until the next is asked for."""
        raise NotImplementedError


def rows_of(tensor: Tensor, count: int) -> Iterator[Array]:
    """Reads a constant of at least one axis in rows; see `RowwiseTensor.read_rows`."""
    if isinstance(tensor, RowwiseTensor):
        return tensor.read_rows(count)
    array = tensor.read()
    return (array[start : start + count] for start in range(0, len(array), count))


@dataclass(frozen=True, slots=True, eq=False)
class ArrayTensor:
    """A constant that is in memory already."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> DType:
        """The dtype of the array."""
        return self.array.dtype

    def read(self) -> Array:
        """The array itself."""
        return self.array
