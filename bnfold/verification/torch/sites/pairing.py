"""Which values of two programs must be equal, and which nodes of the folded program stand between them.

The file of this name in `bnfold.verification.onnx.sites` does this for ONNX. A node that reads equal values and has
equal constants gives an equal result; so if what the other nodes yield equals what the original has there, fed with
the original's own values, then the folded program as a whole computes what the original computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from bnfold.torch.fx.nodes import all_reads, element_reads, fake_tensor
from bnfold.verification.torch.run.traced import Traced
from bnfold.verification.torch.sites.sameness import Constants, same_arguments

Guess = Callable[[fx.Node], fx.Node | None]
"""For a node of the folded program, the node of the original whose value it must have; None if that cannot be told."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """How a folded program lies over the original.

    Attributes:
        changed: The varying nodes of the folded program that have no equal in the original, in their order.
        partners: Nodes of the folded program → the node of the original whose value they must have.
    """

    changed: tuple[fx.Node, ...]
    partners: Mapping[fx.Node, fx.Node]


def pair(original: Traced, folded: Traced, guess: Guess) -> Pairing | None:
    """Lay the folded program over the original; None if they do not take the same inputs.

    Args:
        original: The original.
        folded: The folded program.
        guess: What each node of it may stand for.
    """
    if len(original.inputs) != len(folded.inputs):
        return None
    constants = Constants(original, folded)
    partners = dict(zip(folded.inputs, original.inputs, strict=True))

    def same_read(ours: fx.Node, theirs: fx.Node) -> bool:
        return partners.get(ours) is theirs or constants.equal(ours, theirs)

    changed = []
    for node in folded.nodes:
        if node not in folded.varies:
            continue
        partner = guess(node)
        if partner is not None and partner not in original.varies:
            partner = None
        if partner is not None and node.target == partner.target and same_arguments(node, partner, same_read):
            partners[node] = partner
            continue
        changed.append(node)
        if partner is not None and fake_tensor(node) is not None and fake_tensor(partner) is not None:
            partners[node] = partner
    return Pairing(tuple(changed), partners)


def by_name(original: Traced, folded: Traced) -> Guess:
    """What folded programs promise: a node keeps its name only if its value is still the original's of that name.

    Some other tools let a convolution keep its name when the batch norm behind it goes away; there, the nodes that read
    it and did not change tell what it stands for, unless they read its shape alone.
    """
    known = {node.name: node for node in original.nodes}
    claims: defaultdict[fx.Node, set[fx.Node]] = defaultdict(set)
    constants = Constants(original, folded)
    computed = set(folded.nodes)
    for node in folded.nodes:
        other = known.get(node.name)
        if other is None or node.target != other.target:
            continue
        reads, theirs = [*all_reads(node)], [*all_reads(other)]
        if len(reads) != len(theirs):
            continue
        pairs = [*zip(reads, theirs, strict=True)]
        fixed = [(mine, yours) for mine, yours in pairs if mine not in folded.varies]
        if all(constants.equal(mine, yours) for mine, yours in fixed):
            elements = {*element_reads(node)}  # whose shape or type is read may have any
            for mine, yours in pairs:
                if mine in computed and mine in folded.varies and mine in elements and yours in known.values():
                    claims[mine].add(yours)

    def guess(node: fx.Node) -> fx.Node | None:
        named, said = known.get(node.name), claims[node]
        if not said or named in said or named is None:
            return named
        return next(iter(said)) if len(said) == 1 else None

    return guess
