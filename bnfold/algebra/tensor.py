"""Constants that maps are made of, read when they are needed."""

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
