"""Whether the code of a module still does the same once its batch norms are gone, found out before anything changes.

A graph says what an example runs, but not what the code asks on the way: whether a convolution has a bias, how many
parameters there are, of which class a child is, which element type `self.bn.weight` has. So the code is run twice
without values, as it is and with the places of a fold changed, and both runs are compared, call by call
(`bnfold.torch.module.rehearsal.recording`). Places that make a difference are found by halving.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bnfold.algebra.rounding import Array
from bnfold.reasons import Stop, StopCode
from bnfold.torch.capture.capture import Capture
from bnfold.torch.capture.copying import copy_with, shadow
from bnfold.torch.capture.export import Arguments, first_line
from bnfold.torch.capture.kept_state import kept
from bnfold.torch.fx.tensors import named_tensors, to_numpy
from bnfold.torch.module.apply import Edits, Write, apply_module
from bnfold.torch.module.rehearsal.recording import Edited, Record, Values, record
from bnfold.torch.module.rehearsal.shape_cache import ShapeCache
from bnfold.torch.module.removal import ONLY_A_GRAPH
from bnfold.torch.module.tensor_slots import Place

_MOST_FOUND = 16
"""After so many places that make a difference each on its own, no more are looked for."""


class Rehearsal:
    """Tries folds of one module.

    Args:
        module: The module; copies of it are run.
        arguments: The example.
        captured: What was captured of it.
    """

    def __init__(self, module: nn.Module, arguments: Arguments, captured: Capture) -> None:
        self._module = module
        self._arguments = arguments
        self._parts = frozenset(piece.path for piece in captured.pieces) if captured.refusals else frozenset()
        self._ways = [Values.REAL] if self._parts else [Values.META, Values.FAKE, Values.REAL]
        self._shapes = ShapeCache()
        self._results: list[object] | None = None
        first: dict[Tensor, str] = {}
        self._names = {name: first.setdefault(tensor, name) for name, tensor in named_tensors(module)}

    def objections(self, edits: Edits) -> Mapping[Place, Stop]:
        """The places that must stay as they are, each with the reason."""
        places = _places(edits)
        if not places:
            return {}
        what = self._difference(edits, places)
        if what is None:
            return {}
        found = dict(self._search(edits, places, what))
        return found if len(found) < _MOST_FOUND else {place: _stop(place, what) for place in places}

    def _search(self, edits: Edits, places: Sequence[Place], what: str) -> Iterator[tuple[Place, Stop]]:
        """Halves the places until each part makes no difference, or is one."""
        if len(places) == 1:
            yield places[0], _stop(places[0], what)
            return
        middle = len(places) // 2
        halves = [(half, self._difference(edits, half)) for half in (places[:middle], places[middle:])]
        if all(difference is None for _, difference in halves):
            yield from ((place, _stop(place, what)) for place in places)
        for half, difference in halves:
            if difference is not None:
                yield from self._search(edits, half, difference)

    def _difference(self, edits: Edits, places: Sequence[Place]) -> str | None:
        """What becomes different if some places are changed; None if nothing does."""
        chosen = _only(edits, set(places))
        edited = Edited(
            self._names,
            chosen.removed,
            frozenset(write.places[0] for write in chosen.added),
            frozenset(path for write in chosen.computed for path, _ in write.places),
        )
        before = self._before(edited)
        if before is None:
            return None
        changed = apply_module(self._copy(), _without_values(chosen, self._module), inplace=True)
        try:
            after = self._record(changed, edited)
        except Exception as error:  # noqa: BLE001 - whatever the code of the module raises
            return f"would fail ({first_line(error)})" if self._runs() else None
        if before.entries == after.entries:
            return None
        again = self._before(edited)  # what has a memory of its own, beside the module, may differ by itself
        return None if again is None or again.entries == after.entries else "would do something else"

    def _before(self, edited: Edited) -> Record | None:
        """What the module does as it is, in the first way that it can be run; None if there is none."""
        while self._ways:
            try:
                return self._record(self._copy(), edited)
            except Exception:  # noqa: BLE001 - whatever the code of the module raises
                self._ways.pop(0)
                self._shapes = ShapeCache()
        return None

    def _runs(self) -> bool:
        """Whether the module can be run as it is: without values torch lets element types pass that do not fit."""
        nothing = Edited(self._names, {}, frozenset(), frozenset())
        try:
            record(shadow(self._module), self._arguments, nothing, Values.REAL)
        except Exception:  # noqa: BLE001 - whatever the code of the module raises
            return False
        return True

    def _copy(self) -> nn.Module:
        if self._ways[0] is not Values.META:
            return shadow(self._module)
        tensors: dict[Tensor, Tensor] = {
            tensor: torch.empty_like(tensor, device="meta") for tensor in self._module.buffers()
        }
        for tensor in self._module.parameters():
            tensors[tensor] = nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
        return copy_with(self._module, tensors)

    def _record(self, module: nn.Module, edited: Edited) -> Record:
        way = self._ways[0]
        with kept(self._module):  # hooks of a copy may know the module itself
            run = record(
                module, self._arguments, edited, way, shapes=self._shapes, parts=self._parts, results=self._results
            )
        if self._parts and self._results is None:
            self._results = run.results
        return run


def _stop(place: Place, what: str) -> Stop:
    looked_at = f"'{place.path}'" if place.name is None else f"'{place.name}' of '{place.path}'"
    change = "it were gone" if place.name is None else "that were another"
    reason = f"the code of the model looks at {looked_at} itself, and {what} if {change}, so {ONLY_A_GRAPH}"
    return Stop(StopCode.NEEDS_GRAPH, reason)


def _places(edits: Edits) -> list[Place]:
    writes = [place for write in (*edits.added, *edits.computed) for place in write.places]
    return [*(Place(path, None) for path in edits.removed), *(Place(path, name) for path, name in writes)]


def _only(edits: Edits, places: set[Place]) -> Edits:
    """The edits at some places, without new values."""

    def chosen(writes: tuple[Write, ...]) -> tuple[Write, ...]:
        return tuple(write for write in writes if Place(*write.places[0]) in places)

    removed = {path: remains for path, remains in edits.removed.items() if Place(path, None) in places}
    return Edits((), chosen(edits.added), chosen(edits.computed), removed)


def _without_values(edits: Edits, module: nn.Module) -> Edits:
    """Edits with some values or other, which cost nothing to compute."""

    def present(write: Write) -> Callable[[], Array]:
        ((path, name),) = write.places
        return lambda: np.array(to_numpy(getattr(module.get_submodule(path), name).detach()))

    computed = tuple(Write(write.places, present(write), present(write)) for write in edits.computed)
    return Edits(edits.writes, edits.added, computed, edits.removed)
