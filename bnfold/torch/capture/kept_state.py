"""What code keeps on modules while it runs: looked at, and put back.

A module may remember something of its inputs: a grid of their size, a list of what it has seen. While torch.export
follows it, that is a tensor without values, which the next run would take for a real one.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from logging import Logger
from types import ModuleType

from torch import Tensor, nn

_Containers = dict[int, tuple[object, object]]
"""Containers by their id, each with a copy of what was in it."""

_OF_TORCH = ("_parameters", "_buffers", "_modules")


def kept_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that attributes of a module and of those inside of it hold, by their path.

    Parameters and buffers are none of them. Containers are looked into, and plain objects.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [
        (f"{path}.{name}" if path else name, value)
        for path, child in module.named_modules()
        for name, value in vars(child).items()
        if name not in _OF_TORCH and "_hooks" not in name
    ]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            found[name] = value
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += _inside(name, value)
    return found


def _inside(name: str, value: object) -> list[tuple[str, object]]:
    """What a container or a plain object holds, by its path."""
    if isinstance(value, dict):
        return [(f"{name}[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return [(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if _has_dict(value):
        return [(f"{name}.{key}", item) for key, item in object.__getattribute__(value, "__dict__").items()]
    return []


class Remembered:
    """What there is on a module and on those inside of it, and in containers and plain objects that they have.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._found: _Containers = {}
        waiting: list[object] = [vars(child) for child in module.modules()]
        while waiting:
            value = waiting.pop()
            if id(value) not in self._found:
                waiting += self._remember(value)

    @property
    def is_changed(self) -> bool:
        """Whether anything is there by now that was not, or is no longer."""
        return any(not _is_as_before(container, before) for container, before in self._found.values())

    def put_back(self) -> None:
        """Puts everything back to what it was."""
        for container, before in self._found.values():
            if not _is_as_before(container, before):
                _put_back(container, before)

    def _remember(self, value: object) -> list[object]:
        """Remembers a container, and says what is in it."""
        match value:
            case dict():
                self._found[id(value)] = (value, dict(value))
                return [*value.values()]
            case list() | deque():
                self._found[id(value)] = (value, [*value])
                return [*value]
            case set():
                self._found[id(value)] = (value, {*value})
                return []
            case tuple():
                return [*value]
            case _:
                return [object.__getattribute__(value, "__dict__")] if _has_dict(value) else []


@contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """Puts back what there is on a module and on those inside of it, see `Remembered`."""
    before = Remembered(module)
    try:
        yield
    finally:
        before.put_back()


def is_plain_object(value: object) -> bool:
    """Whether something is no tensor, module or function, and no logger, which all share."""
    return not isinstance(value, Tensor | nn.Module | ModuleType | Logger) and not callable(value)


def _has_dict(value: object) -> bool:
    return bool(type(value).__dictoffset__) and is_plain_object(value)


def _is_as_before(container: object, before: object) -> bool:
    match container, before:
        case dict(), dict():
            return [*container] == [*before] and _are_same([*container.values()], [*before.values()])
        case ((list() | deque()), list()):
            return _are_same([*container], before)
        case _:
            return container == before


def _put_back(container: object, before: object) -> None:
    match container, before:
        case dict(), dict():
            container.clear()
            container.update(before)
        case ((list() | deque()), list()):
            container.clear()
            container.extend(before)
        case set(), set():
            container.clear()
            container.update(before)
        case _:
            pass


def _are_same(now: list[object], before: list[object]) -> bool:
    """Whether the same objects are there, in the same order."""
    return len(now) == len(before) and all(new is old for new, old in zip(now, before, strict=True))
