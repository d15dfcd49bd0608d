"""Which tensors a module holds, under which names, and which of them are one."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from bnfold.torch.capture.capture import Piece
from bnfold.torch.fx.nodes import within
from bnfold.torch.fx.readers import readers_by_name
from bnfold.torch.fx.tensors import memory


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a parameter or buffer.

    Attributes:
        module: The module that has it.
        path: The path of the module.
        name: The name in the module.
    """

    module: nn.Module
    path: str
    name: str

    @property
    def full_name(self) -> str:
        """The name of the parameter or buffer in the model (FQN)."""
        return f"{self.path}.{self.name}" if self.path else self.name


@dataclass(frozen=True, slots=True)
class Place:
    """Something of a module by its path, in whatever copy of the module.

    Attributes:
        path: The path of a module.
        name: The name of a parameter there; None if the module itself is meant.
    """

    path: str
    name: str | None


@dataclass(slots=True, eq=False)
class Group:
    """A tensor, and every place that it is in.

    Attributes:
        tensor: The tensor.
        slots: The places; tied parameters have several.
        overlaps: Whether other tensors have some of its memory, but not the same.
    """

    tensor: Tensor
    slots: list[Slot] = field(default_factory=list)
    overlaps: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether new values can be written into it: a dense tensor of its own, no subclass."""
        plain = type(self.tensor) in (Tensor, nn.Parameter, nn.Buffer) and self.tensor.layout is torch.strided
        return plain and not self.overlaps and torch._debug_has_internal_overlap(self.tensor) != 1


class Slots:
    """The parameters and buffers of a module.

    Args:
        root: The module.
    """

    def __init__(self, root: nn.Module) -> None:
        self.groups: list[Group] = []
        self._by_name: dict[str, Group] = {}
        self._by_module: dict[nn.Module, dict[Group, None]] = {}
        by_tensor: dict[object, Group] = {}
        slots: dict[tuple[int, str], Slot] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            for name, tensor in _held(module):
                place = _place(tensor)
                if place not in by_tensor:
                    by_tensor[place] = Group(tensor)
                    self.groups.append(by_tensor[place])
                group = by_tensor[place]
                slot = slots.setdefault((id(module), name), Slot(module, path, name))
                if slot not in group.slots:
                    group.slots.append(slot)
                self._by_name[f"{path}.{name}" if path else name] = group
                self._by_module.setdefault(module, {})[group] = None
        self._mark_overlaps()

    def find(self, full_name: str) -> Group | None:
        """The tensor with a name, which may lead through any path to its module."""
        return self._by_name.get(full_name)

    def of(self, module: nn.Module) -> tuple[Group, ...]:
        """The tensors that a module itself has."""
        return tuple(self._by_module.get(module, ()))

    def _mark_overlaps(self) -> None:
        by_memory: dict[int, list[Group]] = {}
        for group in self.groups:
            by_memory.setdefault(memory(group.tensor), []).append(group)
        for groups in by_memory.values():
            ordered = sorted((*_span(group.tensor), position) for position, group in enumerate(groups))
            end, last = -1, -1
            for start, stop, position in ordered:
                if start < end:
                    groups[position].overlaps = groups[last].overlaps = True
                if stop > end:
                    end, last = stop, position


Readers = Mapping[Group, Counter[fx.Node]]
"""The nodes that read each tensor, with how many times each."""


def readers(slots: Slots, pieces: Sequence[Piece], origin: nn.Module) -> Readers:
    """Who reads the tensors of a module in the programs that were captured of it.

    Args:
        slots: The tensors.
        pieces: The programs; what code reads from a list or a closure is a constant there, with memory to know it by.
        origin: The module that was copied to be captured: closures still have its buffers.
    """
    by_memory = {memory(group.tensor): group for group in slots.groups}
    for name, buffer in origin.named_buffers(remove_duplicate=False):
        group = slots.find(name)
        if group is not None:
            by_memory.setdefault(memory(buffer), group)
    found: dict[Group, Counter[fx.Node]] = {}
    for piece in pieces:
        for name, nodes in readers_by_name(piece.program).items():
            constant = piece.program.constants.get(name)
            group = slots.find(within(piece.path, name))
            if group is None and isinstance(constant, Tensor):
                group = by_memory.get(memory(constant))
            if group is not None:
                found.setdefault(group, Counter()).update(nodes)
    return found


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for held in (module._parameters, module._buffers):
        for name, tensor in held.items():
            if tensor is not None:
                yield name, tensor


def _place(tensor: Tensor) -> object:
    """What two tensors have in common that are one, perhaps in two Python objects."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    return memory(tensor), *_span(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _span(tensor: Tensor) -> tuple[int, int]:
    """The bytes that a tensor takes of its memory: the first, and the one behind the last."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return 0, 0
    start = int(tensor.storage_offset()) * tensor.element_size()
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (reach + 1) * tensor.element_size()
