"""What becomes of something that several maps share: a parameter, or a module of which they are calls."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from bnfold.algebra.linear_map import Folding
from bnfold.algebra.rounding import Array
from bnfold.torch.module.tensor_slots import Group
from bnfold.torch.module.weight_homes import Home


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What becomes of something that several maps share: a parameter, or a module of which they are calls.

    Attributes:
        shared: The parameter or the module.
        home: Where the weights of the map are kept; None if it stays as it is.
        folding: What the map absorbs; None if nothing.
        bias: Its new bias; None if it has none, or nothing is absorbed.
    """

    shared: Group | nn.Module
    home: Home | None
    folding: Folding | None
    bias: Array | None

    def agrees(self, other: "Change") -> bool:
        """Whether two maps change it alike."""
        if self.folding is None or other.folding is None or self.home is None or other.home is None:
            return self.folding is other.folding
        one, two = self.folding.linear, other.folding.linear
        is_weight = self.home.weight is self.shared
        if isinstance(self.shared, Group) and is_weight is not (other.home.weight is self.shared):
            return False
        if is_weight or isinstance(self.shared, nn.Module):
            alike = (one.out_first, one.groups, one.order) == (two.out_first, two.groups, two.order)
            if not alike or not all(map(_same, self._scales(), other._scales())):
                return False
        return is_weight or _same(self.bias, other.bias)

    def _scales(self) -> tuple[Array | None, Array | None]:
        assert self.folding is not None  # the caller has looked
        inner, outer = self.folding.inner, self.folding.outer
        return (None if inner is None else inner.scale), (None if outer is None else outer.scale)


def _same(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
