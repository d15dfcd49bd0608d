"""What a model is called with, by names and in the structure that its code asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What a model is called with.

    Attributes:
        names: A name for each leaf.
        leaves: Tensors, and whatever else is passed.
        structure: How args and kwargs are made of the leaves.
    """

    names: tuple[str, ...]
    leaves: tuple[object, ...]
    structure: pytree.TreeSpec

    def moved(
        self, device: torch.device, convert: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Copies of the inputs on a device, which the model may write into.

        Args:
            device: Where they go.
            convert: What is done to each tensor there, or None.

        Returns:
            args and kwargs.
        """

        def copied(leaf: object) -> object:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            there = leaf.detach().to(device, copy=True)
            return there if convert is None else convert(there)

        args, kwargs = pytree.tree_unflatten([copied(leaf) for leaf in self.leaves], self.structure)
        return args, kwargs

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors among the leaves, by name and in order."""
        pairs = zip(self.names, self.leaves, strict=True)
        return {name: leaf for name, leaf in pairs if isinstance(leaf, torch.Tensor)}
