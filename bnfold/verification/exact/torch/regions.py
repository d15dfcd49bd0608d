"""One region of two programs on small integers, in float64 on the CPU; see `regions` and `running` for ONNX."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Set

import numpy as np
import torch
from torch import fx

from bnfold.report.records import Verdict
from bnfold.torch.fx.nodes import all_reads, arguments, operator_name
from bnfold.torch.fx.tensors import numpy_dtype, to_numpy
from bnfold.verification.exact.judging import NotCutError, judge
from bnfold.verification.exact.torch.feeding import Given, Sizes, call, multiple_for, wide
from bnfold.verification.torch.run.devices import first_line
from bnfold.verification.torch.run.traced import Traced


class WrongError(Exception):
    """The folded side does not run where the original does; the message is what PyTorch said."""


class Pair:
    """One value of the folded program beside the original's.

    Args:
        original: The original.
        folded: The folded program.
        end: The node of the folded program.
        partners: Nodes of the folded program → those of the original that they must equal.
        shared: The values of the original that the folded program has too.

    Raises:
        NotCutError: It cannot run by itself.
    """

    def __init__(
        self,
        original: Traced,
        folded: Traced,
        end: fx.Node,
        partners: Mapping[fx.Node, fx.Node],
        shared: Collection[fx.Node],
    ) -> None:
        self._original, self._folded, self._end, self._partners = original, folded, end, partners
        self.nodes, reads = _slice(folded, end, lambda node: node in partners)
        cut = {partners[node] for node in reads}

        def outside(node: fx.Node) -> bool:
            return node in cut or (node in shared and _origins(original, node, cut) is None)

        self._others, self._entries = _slice(original, partners[end], outside)
        self._computed = _computed(original, cut, {*self._entries} - cut)
        nodes = [*self._others, *self._computed]
        divisors = [arguments(node).get("other") for node in nodes if operator_name(node) == "div"]
        stored = [folded.stored.get(read) for node in self.nodes for read in all_reads(node)]
        dtypes = {numpy_dtype(tensor.dtype) for tensor in stored if isinstance(tensor, torch.Tensor)}
        self._stored = {dtype for dtype in dtypes if dtype is not None}
        self._divisors = {node for node in divisors if isinstance(node, fx.Node)}

    def compare(self, sizes: Sizes, seed: int) -> tuple[Verdict, str]:
        """Runs both sides once.

        Args:
            sizes: A size for each symbol.
            seed: Of the integers.

        Raises:
            NotCutError: The original does not run.
            WrongError: The folded side does not, and the original does.
        """
        draw = np.random.default_rng(seed)
        multiple = multiple_for([*self._others, *self._computed], sizes)
        given = Given(self._original, sizes, draw, multiple, self._divisors, self._computed)
        try:
            expected = _run(self._original, self._others, self._partners[self._end], given, {})
        except NotCutError:
            raise
        except Exception as error:
            raise NotCutError(f"was not run: {first_line(error)}") from error
        try:
            found = _run(self._folded, self.nodes, self._end, given, self._partners)
        except NotCutError:
            raise
        except Exception as error:
            raise WrongError(f"does not run where the original does: {first_line(error)}") from error
        return judge(to_numpy(expected), to_numpy(found), self._stored)


def _slice(traced: Traced, end: fx.Node, outside: Callable[[fx.Node], bool]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes that lead to a value, in order, and the varying ones before them."""
    found, reads = {end}, dict[fx.Node, None]()
    waiting = [end]
    while waiting:
        for read in all_reads(waiting.pop()):
            if read in traced.varies and (read.op == "placeholder" or outside(read)):
                reads[read] = None
            elif read not in traced.stored and read not in found:
                found.add(read)
                waiting.append(read)
    return [node for node in traced.nodes if node in found], [*reads]


def _computed(traced: Traced, cut: Set[fx.Node], more: Set[fx.Node]) -> dict[fx.Node, None]:
    """What lies between values that the original alone begins with and those that the folded side does.

    They would be fed with other numbers each: x and dropout(x), of which the original adds both up.

    Args:
        traced: The original.
        cut: What the folded side begins with.
        more: What the original begins with besides.
    """
    between: dict[fx.Node, None] = {}
    for end in cut if more else ():
        others = {*cut, *more} - {end}
        if not more.isdisjoint(_origins(traced, end, others) or ()):
            between |= dict.fromkeys(_slice(traced, end, others.__contains__)[0])
    return between


def _origins(traced: Traced, node: fx.Node, cut: Collection[fx.Node]) -> set[fx.Node] | None:
    """The values of `cut` that a value is computed from, besides constants; None if it is from anything else."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if part in seen or part not in traced.varies:
            continue
        seen.add(part)
        if part in cut:
            continue
        if part.op == "placeholder":
            return None
        waiting += all_reads(part)
    return seen.intersection(cut)


def _run(
    traced: Traced, nodes: Iterable[fx.Node], end: fx.Node, given: Given, partners: Mapping[fx.Node, fx.Node]
) -> torch.Tensor:
    values: dict[fx.Node, object] = {}

    def value(node: fx.Node) -> object:
        if node not in values:
            stored = traced.stored.get(node)
            values[node] = given.value(partners.get(node, node)) if stored is None else wide(stored)
        return values[node]

    for node in nodes:
        values[node] = call(node, value)
    result = values[end]
    if not isinstance(result, torch.Tensor):
        raise NotCutError(f"{end.name!r} is no tensor")
    return result
