"""What the nodes of a folded model stand for, if its graph is that of the original without the batch norms that went.

A folded module has no names of values to go by, so a plan says where the scale and the shift of each batch norm that is
gone went, and so which values of the original are no longer what they were. The plan decides only which values must
agree; it must explain exactly the parameters that differ, or the two cannot be paired.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping

from torch import fx

from bnfold.errors import BnfoldError
from bnfold.graph import AffineNode, Graph
from bnfold.planning import planner
from bnfold.planning.plan import Plan
from bnfold.planning.renaming import Renaming
from bnfold.torch.lift.lift import lift
from bnfold.torch.lift.provenance import Handle
from bnfold.verification.torch.run.traced import Traced
from bnfold.verification.torch.sites.pairing import Guess
from bnfold.verification.torch.sites.sameness import Constants

_GONE = "\0"  # what no node is called


class NotPairedError(Exception):
    """Why the regions of two modules cannot be paired: a clause."""


def by_plan(original: Traced, folded: Traced) -> Guess:
    """What each node of a folded module stands for.

    Raises:
        NotPairedError: The two differ by something else than batch norms that went into weights.
    """
    try:
        graph, kept = lift(original.program), lift(folded.program)
        gone = _gone(graph, kept)
        plan = planner.plan(graph, only=tuple(glob.escape(node.name) for node in gone)) if gone else None
    except BnfoldError as error:
        raise NotPairedError(str(error)) from error
    removed = {part for node in gone for part in _parts(node)}
    aligned = _align(original, folded, removed)
    if plan is None:
        return aligned.get
    left = [name for entry in plan.left for name in entry.nodes if name in {node.name for node in gone}]
    if left:
        raise NotPairedError(f"{left[0]!r} is gone, but no exact rule says where to")
    _check_parameters(original, folded, plan, aligned)
    return _guess(original, plan, aligned)


def by_known_plan(original: Traced, folded: Traced, plan: Plan) -> Guess:
    """What each node of a folded module stands for, by the plan that it was folded by.

    Raises:
        NotPairedError: The two differ by something else than what the plan takes away.
    """
    gone = {part.name for step in plan.steps for part in _parts(step.source)}
    return _guess(original, plan, _align(original, folded, {node for node in original.nodes if node.name in gone}))


def _guess(original: Traced, plan: Plan, aligned: Mapping[fx.Node, fx.Node]) -> Guess:
    names = {node.name: node for node in original.nodes}
    final = {value.name: name for _, value, name in Renaming(plan).final(lambda base: _GONE + base)}

    def guess(node: fx.Node) -> fx.Node | None:
        other = aligned.get(node)
        return None if other is None else names.get(final.get(other.name, other.name))

    return guess


def _gone(graph: Graph, kept: Graph) -> list[AffineNode]:
    """The batch norms and other affines of the original that the folded module has no more.

    Raises:
        NotPairedError: The folded module has some that the original does not have.
    """
    left = Counter(_identity(node) for node in kept.affines)
    gone = []
    for node in graph.affines:
        if left[_identity(node)]:
            left[_identity(node)] -= 1
        else:
            gone.append(node)
    if left.total():
        raise NotPairedError("the folded module has batch norms that the original does not have")
    return gone


def _identity(node: AffineNode) -> tuple[str, str | None, str | None]:
    handle = node.handle
    return (node.kind, handle.module, handle.call) if isinstance(handle, Handle) else (node.kind, None, None)


def _parts(node: AffineNode) -> tuple[fx.Node, ...]:
    return (node.handle.node, *node.handle.chain) if isinstance(node.handle, Handle) else ()


def _align(original: Traced, folded: Traced, removed: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """The nodes of the folded module, and those of the original without the ones that went, side by side.

    Raises:
        NotPairedError: They do not do the same in the same order.
    """
    theirs = [node for node in original.nodes if node in original.varies and node not in removed]
    ours = [node for node in folded.nodes if node in folded.varies]
    for mine, yours in zip(ours, theirs, strict=False):
        if mine.target != yours.target:
            raise NotPairedError(f"{mine.name!r} of the folded module does something else than the original there")
    if len(ours) != len(theirs):
        raise NotPairedError(f"the folded module has {len(ours)} operations where {len(theirs)} are left")
    return dict(zip(ours, theirs, strict=True))


def _check_parameters(original: Traced, folded: Traced, plan: Plan, aligned: dict[fx.Node, fx.Node]) -> None:
    """See that the plan changes the very nodes whose weights differ.

    Raises:
        NotPairedError: It does not.
    """
    constants = Constants(original, folded)
    differing = set()
    for mine, yours in aligned.items():
        ours, theirs = (
            [read for read in node.all_input_nodes if read not in program.varies]
            for node, program in ((mine, folded), (yours, original))
        )
        if len(ours) != len(theirs) or not all(map(constants.equal, ours, theirs)):
            differing.add(yours)
    planned = {
        part
        for target in (*plan.foldings, *plan.leftovers)
        if isinstance(target.handle, Handle)
        for part in (target.handle.node, *target.handle.chain)
    }
    unexplained = [node.name for node in original.nodes if node in differing and node not in planned]
    if unexplained:
        raise NotPairedError(f"the parameters of {unexplained[0]!r} differ, and no batch norm that is gone explains it")
