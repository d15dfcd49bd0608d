"""What code keeps on modules while it runs: looked at, and put back.

A module may remember something of its inputs: a grid of their size, a list of what it has seen. While torch.export
follows it, that is a tensor without values, which the next run would take for a real one.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
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
    if type(value).__dictoffset__ and not callable(value) and not isinstance(value, nn.Module | ModuleType):
        return [(f"{name}.{key}", item) for key, item in object.__getattribute__(value, "__dict__").items()]
    return []


@contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """Puts the attributes of a module and of those inside of it back to what they were, and what is in containers."""
    found: _Containers = {}
    for child in module.modules():
        _remember(vars(child), found)
    try:
        yield
    finally:
        for container, before in found.values():
            _put_back(container, before)


def _remember(value: object, found: _Containers) -> None:
    if id(value) in found:
        return
    inside: list[object] = []
    match value:
        case dict():
            found[id(value)] = (value, dict(value))
            inside = [*value.values()]
        case list() | deque():
            found[id(value)] = (value, [*value])
            inside = [*value]
        case set():
            found[id(value)] = (value, {*value})
        case tuple():
            inside = [*value]
        case _:
            pass
    for item in inside:
        _remember(item, found)


def _put_back(container: object, before: object) -> None:
    match container, before:
        case dict(), dict():
            if [*container] != [*before] or not _are_same([*container.values()], [*before.values()]):
                container.clear()
                container.update(before)
        case ((list() | deque()), list()):
            if not _are_same([*container], before):
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
