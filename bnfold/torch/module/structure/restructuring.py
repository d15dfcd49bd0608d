"""What a fold changed in the structure of a module, apart from numbers, so that a fresh module can be made like it.

A state dict says nothing of this: a convolution has a bias because a shift was not zero, and a BatchNorm is gone
because nothing was in its way. It goes into the metadata of the file, with what the module was like before.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn

from bnfold.algebra.rounding import Array
from bnfold.errors import ModelLoadError
from bnfold.torch.capture.copying import shadow
from bnfold.torch.fx.tensors import to_numpy
from bnfold.torch.module.apply import Edits, Write, apply_module

_SHOWN = 3

Shapes = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Restructuring:
    """The structure of a folded module, against that of the module as its code makes it.

    Attributes:
        before: The shapes in the state dict of the module as it was.
        added: The names of the biases that are new.
        computed: The names of the parameters that are plain now, where a parametrization computed them.
        removed: The modules that went away, by path: the name of the class of each, and of the submodules that stay.
    """

    before: Shapes
    added: tuple[str, ...]
    computed: tuple[str, ...]
    removed: Mapping[str, tuple[str, tuple[str, ...]]]

    @staticmethod
    def of(document: Mapping[str, object]) -> "Restructuring":
        """What `dataclasses.asdict` gave, after a way through JSON.

        Raises:
            KeyError: A part is missing.
            TypeError: A part is of another kind.
            ValueError: A part has another form.
        """
        before, removed = document["before"], document["removed"]
        added, computed = document["added"], document["computed"]
        if not (isinstance(before, dict) and isinstance(removed, dict)):
            raise TypeError("before and removed are not objects")
        if not (isinstance(added, list) and isinstance(computed, list)):
            raise TypeError("added and computed are not lists")
        return Restructuring(
            {str(name): [int(size) for size in shape] for name, shape in before.items()},
            tuple(map(str, added)),
            tuple(map(str, computed)),
            {str(path): (str(kind), tuple(map(str, remains))) for path, (kind, remains) in removed.items()},
        )


def restructuring_of(module: nn.Module, edits: Edits) -> Restructuring:
    """What edits change in the structure of a module.

    Args:
        module: The module, before the edits are made.
        edits: The edits.
    """

    def names(writes: tuple[Write, ...]) -> tuple[str, ...]:
        return tuple(f"{path}.{name}".lstrip(".") for write in writes for path, name in write.places)

    removed = {
        path: (type(module.get_submodule(path)).__name__, tuple(remains)) for path, remains in edits.removed.items()
    }
    return Restructuring(_shapes(module), names(edits.added), names(edits.computed), removed)


def restructure(module: nn.Module, changes: Restructuring, state: Mapping[str, Tensor]) -> nn.Module:
    """Makes a fresh module like the folded one.

    Args:
        module: The module, as its code makes it; changed in place.
        changes: What the fold changed.
        state: The state dict of the folded module; added and computed parameters have their values from it.

    Raises:
        ModelLoadError: The module is not like the one that was folded, or the state dict does not fit it; it is as it
            was.
    """
    _require_like(module, changes)
    edits = Edits((), _writes(changes.added, state), _writes(changes.computed, state), _removed(changes))
    is_meta = any(tensor.is_meta for tensor in module.state_dict().values() if isinstance(tensor, Tensor))
    trial = deepcopy(module) if is_meta else shadow(module)
    _require_fit(apply_module(trial, edits, inplace=True), state)
    folded = apply_module(module, edits, inplace=True)
    folded.load_state_dict(state, assign=is_meta)
    return folded


def _writes(names: tuple[str, ...], state: Mapping[str, Tensor]) -> tuple[Write, ...]:
    for name in names:
        if name not in state:
            raise ModelLoadError(f"it says that {name!r} is new, and does not have it")
    return tuple(_write(name, state[name]) for name in names)


def _write(name: str, tensor: Tensor) -> Write:
    path, _, own = name.rpartition(".")

    def values() -> Array:
        return to_numpy(tensor)

    return Write(((path, own),), values, values)


def _removed(changes: Restructuring) -> dict[str, tuple[str, ...]]:
    return {path: remains for path, (_, remains) in changes.removed.items()}


def _require_like(module: nn.Module, changes: Restructuring) -> None:
    """Requires a fresh module to be like the one that was folded."""
    here = _shapes(module)
    missing = [name for name in changes.before if name not in here]
    extra = [name for name in here if name not in changes.before]
    shapes = [
        f"{name} is {_text(here[name])}, not {_text(shape)}"
        for name, shape in changes.before.items()
        if name in here and here[name] != shape
    ]
    paths = dict(module.named_modules())
    classes = [
        f"{path} is a {type(paths[path]).__name__}, not a {kind}"
        for path, (kind, _) in changes.removed.items()
        if path in paths and type(paths[path]).__name__ != kind
    ]
    _refuse("the module lacks", missing, "it has besides", extra, "in it", shapes + classes)


def _require_fit(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Requires a state dict to fit a module."""
    wanted, here = _shapes(module), {name: list(tensor.shape) for name, tensor in state.items()}
    missing = [name for name in wanted if name not in here]
    extra = [name for name in here if name not in wanted]
    shapes = [
        f"{name} is {_text(here[name])}, not {_text(shape)}"
        for name, shape in wanted.items()
        if name in here and here[name] != shape
    ]
    _refuse("the file lacks", missing, "it has besides", extra, "in it", shapes)


def _refuse(*parts: str | list[str]) -> None:
    said = []
    for what, names in zip(parts[::2], parts[1::2], strict=True):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            said.append(f"{what} {', '.join(names[:_SHOWN])}{more}")
    if said:
        raise ModelLoadError("; ".join(said))


def _shapes(module: nn.Module) -> Shapes:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}


def _text(shape: list[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
