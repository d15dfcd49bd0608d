"""Whether a fold computes what its module does with other sizes of the inputs than the example has.

A graph is what the code does with one example. With another size the code may take another branch, or pad where it
padded nothing, without a trace in the graph. So module and fold are both run with a few other sizes that the module
can be called with: first in the element types that they have, and where rounding may be what differs, in float64, with
weights that were not rounded. A size at which they differ is one more example to be captured.

Where the code keeps something on the module, it may do something else when it is called again; so it is, with the
examples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.errors import UsageError
from bnfold.torch.capture.copying import copy_with, shadow
from bnfold.torch.capture.export import Arguments, first_line
from bnfold.torch.capture.kept_state import Remembered, kept_tensors
from bnfold.torch.capture.returned_values import leaves, with_tensors
from bnfold.torch.module.apply import Edits, apply_module
from bnfold.torch.module.trials.branches import Branch, branches
from bnfold.torch.module.trials.comparing import (
    SAME,
    Later,
    attempt,
    between,
    coarse_rounding,
    is_kept,
    rounding,
    run,
)
from bnfold.torch.module.trials.leaving_out import without
from bnfold.torch.module.trials.representation import others
from bnfold.torch.module.trials.resizing import (
    has_batch_of,
    larger,
    other_batch,
    other_places,
    sizes_of,
    smaller,
    wider,
)
from bnfold.torch.module.weight_homes import computing_hook

_CALLS = 3
"""How often a module is called that keeps something, one call after the other."""

_ABOVE_NOISE = 16
"""By how many times a size has to differ more than the example does, or than units of rounding."""


_Kind = tuple[str, tuple[object, ...]]
"""How a call is built, with the shapes of the tensors in it, and everything else."""


def _wide(tensor: Tensor) -> Tensor:
    kind = torch.complex128 if tensor.is_complex() else torch.float64
    wide = tensor.is_floating_point() or tensor.is_complex()
    return tensor.detach().to(kind, copy=True) if wide else tensor.detach().clone()


def _beside(tensor: Tensor) -> Tensor:
    """A tensor in float64 whose elements are one unit of rounding larger or smaller, at random."""
    wide = _wide(tensor)
    if not wide.is_floating_point():
        return wide
    signs = torch.randint(2, wide.shape, generator=torch.Generator().manual_seed(0)).to(wide) * 2 - 1
    return wide.nextafter(signs * torch.inf)


class Trials:
    """Tries folds of one module with other sizes.

    Args:
        module: The module; copies of it are run.
        examples: What the fold is made for.

    Attributes:
        untried: Where the code asks for sizes, and no call was made up that gets another answer.
    """

    def __init__(self, module: nn.Module, examples: Iterable[Arguments]) -> None:
        self._module = module
        self._examples = [*examples]
        self._calls: list[tuple[Arguments, list[Tensor]]] | None = None
        self._marks: dict[int, str] = {}
        self._in_other_form: set[int] = set()
        self._keeps = False
        self.untried: list[Branch] = []

    def require_example(self) -> None:
        """Makes sure that the module runs at all: torch.export lets element types pass that do not fit.

        Raises:
            UsageError: It does not.
        """
        if self._calls:
            return
        for example in self._examples:
            returned = attempt(shadow(self._module), example)
            if isinstance(returned, Exception) and not isinstance(returned, Later):
                message = f"{type(self._module).__name__} fails with the example inputs: {first_line(returned)}"
                raise UsageError(message) from returned

    @property
    def later(self) -> str | None:
        """What the module returns that computes only when it is asked, such as "a generator"; None if nothing is."""
        if self.calls:
            return None
        returned = (attempt(shadow(self._module), example) for example in self._examples)
        return next((str(what) for what in returned if isinstance(what, Later)), None)

    @property
    def calls(self) -> list[tuple[Arguments, list[Tensor]]]:
        """The calls of other sizes that the module takes, each with what it returns."""
        if self._calls is None:
            self._calls = []
            known = {*map(_kind, self._examples)}
            for example in self._examples:
                self._calls += self._accepted(example, known)
            for example in self._examples:
                self._calls += self._branched(example, known)
        return self._calls

    def differing(self, folded: nn.Module, edits: Edits) -> Arguments | None:
        """A call with which a fold computes something else than the module; None if none was found.

        Args:
            folded: The fold; copies of it are run.
            edits: How it was made.
        """
        for arguments, expected in self.calls:
            found = run(shadow(folded), arguments)
            if found is None:
                return arguments
            distance = between(found, expected)
            if distance > rounding(expected) and self._exceeds_noise(arguments, distance, folded, edits):
                return arguments
        return None

    @property
    def has_other_sizes(self) -> bool:
        """Whether the module takes sizes that none of its examples has."""
        return any(id(arguments) not in self._marks for arguments, _ in self.calls)

    def words(self, arguments: Arguments) -> str:
        """What tells a call from others, such as "2x3x8x8 without mask"."""
        return f"{sizes_of(arguments)}{self._marks.get(id(arguments), '')}"

    def _accepted(self, example: Arguments, known: set[_Kind]) -> Iterator[tuple[Arguments, list[Tensor]]]:
        """For each way to vary an example the first call that the module takes."""
        batch_varies = False
        for kind in (smaller, wider, larger, other_batch):
            if kind is other_batch and batch_varies:
                break
            found = self._first(kind(example), known)
            if found is not None:
                yield found
                batch_varies |= not has_batch_of(found[0], example)
        for call in other_places(example):
            found = self._first([call], known)
            if found is not None:
                yield found
        for what, call in without(self._module, example):
            found = self._first([call], known)
            if found is not None:
                self._marks[id(found[0])] = f" without {what}"
                yield found
        for words, call in others(self._module, example):
            found = self._first([call], set())
            if found is not None:
                self._marks[id(found[0])] = f" {words}"
                self._in_other_form.add(id(found[0]))
                yield found

    def _branched(self, example: Arguments, known: set[_Kind]) -> Iterator[tuple[Arguments, list[Tensor]]]:
        """For each question about sizes that no call answers otherwise one that does, and that the module takes."""
        tried = [*self._examples, *(arguments for arguments, _ in self._calls or ())]
        for branch in branches(self._module, example):
            if any(map(branch.is_left_by, tried)):
                continue
            suggested = branch.others()
            found = self._first(suggested, known)
            if found is not None:
                tried.append(found[0])
                yield found
            elif not suggested:
                self.untried.append(branch)

    def _first(self, calls: Iterable[Arguments], known: set[_Kind]) -> tuple[Arguments, list[Tensor]] | None:
        for arguments in calls:
            kind = _kind(arguments)
            if kind in known:
                continue
            known.add(kind)
            copied = shadow(self._module)
            before = Remembered(copied)
            returned = run(copied, arguments)
            if returned is not None:
                self._keeps |= before.is_changed
                return arguments, returned
        return None

    def kept_differently(self, folded: nn.Module) -> list[dict[str, Tensor]]:
        """The values that the code of the module keeps on it, where a fold keeps others in their place.

        Args:
            folded: The fold; copies of it are run.

        Returns:
            For each example what the module keeps, by its path.
        """
        if self.calls and not self._keeps:
            return [{} for _ in self._examples]
        lost = []
        for example in self._examples:
            theirs = _kept_by(self._module, example)
            ours = _kept_by(folded, example) if theirs else {}
            lost.append({name: value for name, value in theirs.items() if not is_kept(value, ours.get(name))})
        return lost

    def differs_later(self, folded: nn.Module, edits: Edits) -> bool:
        """Whether a fold computes something else than the module when it is called again.

        Args:
            folded: The fold; copies of it are run.
            edits: How it was made.
        """
        if self.calls and not self._keeps:
            return False
        for example in self._examples:
            found, expected = (run(shadow(module), example, _CALLS) for module in (folded, self._module))
            if expected is None:
                continue
            distance = float("inf") if found is None else between(found, expected)
            if distance > rounding(expected) and self._exceeds_noise(example, distance, folded, edits, _CALLS):
                return True
        return False

    def _exceeds_noise(
        self, arguments: Arguments, distance: float, folded: nn.Module, edits: Edits, calls: int = 1
    ) -> bool:
        """Whether calls differ by more than rounding does: in float64, or where the code refuses that, as it is."""
        is_form = id(arguments) in self._in_other_form  # which float64 would not have
        wide = None if is_form else self._wide_distance(arguments, edits, calls)
        if wide is not None:
            noise = [self._wide_distance(example, edits) or 0.0 for example in self._examples]
            if wide <= _ABOVE_NOISE * max(SAME * torch.finfo(torch.float64).eps, *noise):
                return False
            largest = float(torch.finfo(torch.float64).eps ** 0.5)
            return wide > min(_ABOVE_NOISE * self._own_noise(arguments, calls), largest)
        least = 0.0
        for example in self._examples:
            found, expected = (run(shadow(module), example) for module in (folded, self._module))
            if found is not None and expected is not None:
                least = max(least, between(found, expected), rounding(expected))
        inputs = [leaf for leaf in leaves(arguments) if is_form and isinstance(leaf, Tensor)]
        return distance > max(_ABOVE_NOISE * least, coarse_rounding(inputs))

    def _wide_distance(self, arguments: Arguments, edits: Edits, calls: int = 1) -> float | None:
        """How far module and fold are from each other in float64; None where they cannot be run so."""
        call = cast(Arguments, with_tensors(arguments, _wide))
        expected = run(self._in_float64(), call, calls)
        if expected is None:
            return None
        found = run(apply_module(self._in_float64(), edits.exact, inplace=True), call, calls)
        return None if found is None else between(found, expected)

    def _own_noise(self, arguments: Arguments, calls: int) -> float:
        """How far the module in float64 is from itself with tensors that differ by one unit of rounding."""
        call = cast(Arguments, with_tensors(arguments, _wide))
        expected, found = (run(self._in_float64(change), call, calls) for change in (_wide, _beside))
        return 0.0 if expected is None or found is None else between(found, expected)

    def _in_float64(self, change: Callable[[Tensor], Tensor] = _wide) -> nn.Module:
        tensors: dict[Tensor, Tensor] = {tensor: change(tensor) for tensor in self._module.buffers()}
        for tensor in self._module.parameters():
            tensors[tensor] = nn.Parameter(change(tensor), requires_grad=False)
        return copy_with(self._module, tensors)


def _kind(arguments: Arguments) -> _Kind:
    found = (tuple(leaf.shape) if isinstance(leaf, Tensor) else id(leaf) for leaf in leaves(arguments))
    return str(pytree.tree_structure(arguments)), tuple(found)


def _new(module: nn.Module, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a module keeps and did not before; weights that hooks compute are no more than weights."""
    before = {id(tensor) for tensor in held.values()}
    computed = {
        f"{path}.{name}" if path else name
        for path, child in module.named_modules()
        for name in vars(child)
        if computing_hook(child, name) is not None
    }
    found = kept_tensors(module).items()
    return {name: tensor for name, tensor in found if id(tensor) not in before and name not in computed}


def _kept_by(module: nn.Module, arguments: Arguments) -> dict[str, Tensor]:
    copied = shadow(module)
    held = kept_tensors(copied)
    return {} if run(copied, arguments) is None else _new(copied, held)
