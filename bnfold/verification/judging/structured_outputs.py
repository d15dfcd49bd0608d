"""Outputs that are sequences, maps or optionals, as the tensors that they hold.

Each element is compared by itself, by the rules for outputs that are tensors; how many there are, or which keys, are
numbers of their own that have to be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from bnfold.input_spec import Array


def leaves(results: Mapping[str, object]) -> dict[str, object]:
    """The tensors in the outputs of a model: a tensor is itself, an element of a sequence is called `name[0]`."""
    return {leaf: value for name, held in results.items() for leaf, value in _leaves(name, held)}


def is_part_of(leaf: str, output: str) -> bool:
    """Whether a tensor is an output, or held by it."""
    return leaf == output or leaf.startswith((f"{output}[", f"{output} ("))


def count_of(leaf: str) -> str:
    """What the number of elements is called beside an element of a sequence."""
    return f"{leaf.rpartition('[')[0]} (length)"


def _leaves(name: str, held: object) -> Iterator[tuple[str, object]]:
    if isinstance(held, dict):
        held = [held]
    if not isinstance(held, list):
        yield name, held
    elif held and all(isinstance(item, dict) and item.keys() == held[0].keys() for item in held):
        # ZipMap gives a map for each row of a matrix: rows are not judged one by one, but as the matrix.
        yield f"{name} (keys)", np.array([*held[0]])
        yield name, _column([value for item in held for value in item.values()], len(held))
    else:
        yield f"{name} (length)", np.array(len(held))
        for index, item in enumerate(held):
            yield from _leaves(f"{name}[{index}]", item)


def _column(values: list[object], rows: int) -> Array:
    """The values of maps, one map a row, in the narrowest type that holds them: Python has no float32."""
    array = np.array(values)
    if array.dtype == np.float64 and np.array_equal(array.astype(np.float32), array, equal_nan=True):
        array = array.astype(np.float32)
    return array.reshape(rows, -1)
