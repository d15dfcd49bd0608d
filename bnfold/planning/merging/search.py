"""Parallel branches of one value that add up to one map.

    Σ a_i · branch_i(x) = kernel(x)

where a branch is a map, an affine, x itself, an average pool (and an affine), or two of these in a row. The Adds, Subs,
Sums and Means that belong together are taken as one sum. Its terms are read backward: each is something of the value
before it, and of the value before that. Terms of one value are put together, the costliest first, wherever the
map that they become takes no more multiply-adds per output position than they take now: an affine counts one a
channel, the identity none. The operations on the way must be read by nobody else. Affines of one value without any
map among them become one affine.

A pointwise map and a map behind it, or before it, become one where that takes fewer multiply-adds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain as in_a_row
from itertools import combinations, islice
from math import prod

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.joining import chain, chain_is_less_work, total
from bnfold.algebra.kernels import Kernel, as_affine, as_map, of_affine
from bnfold.algebra.linear_map import Folding
from bnfold.graph import AffineNode, Graph, Kind, MapNode, Node, OpNode, RoundTrip, Value, is_identity
from bnfold.planning.destinations import grows
from bnfold.planning.merging.branches import Branches, Term, pool_of
from bnfold.planning.merging.sums import Leaf, Rewired, Sum, is_sum
from bnfold.planning.plan import Junction, Merge, MergeKind
from bnfold.planning.route import listed, seen_by_others
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode

_MOST_PARTS = 64
"""How many choices of terms are tried where all of them together cannot become one."""


@dataclass(frozen=True, slots=True)
class Found:
    """A merge that can be made.

    Attributes:
        junction: What to rewire; `after` is not known here.
        merge: What to say about it.
        folding: The map that the target becomes, if it is one.
        affine: The affine that it becomes, if it is one.
    """

    junction: Junction
    merge: Merge
    folding: Folding | None
    affine: Affine | None


class Merging:
    """Finds merges in the present state of a graph.

    Args:
        graph: The graph.
        tensors: Which of its values are one tensor by now.
        foldings: What its maps have absorbed.
        affines: The affines that are still there and may move.
        compose: Whether affines without a map among them may become one.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: Tensors,
        foldings: Mapping[MapNode, Folding],
        affines: Mapping[AffineNode, Affine],
        *,
        compose: bool,
    ) -> None:
        self._tensors, self._affines, self._compose = tensors, affines, compose
        self._branches = Branches(tensors, foldings, affines)
        self.gone: set[Node] = set()
        self.places = [
            node for node in graph.nodes if isinstance(node, MapNode) or (is_sum(node) and len(node.inputs) > 1)
        ]

    def at(self, node: Node) -> "Found | Stop | None":
        """The merge that ends at a node, or why branches that meet there stay; None if none do."""
        if node in self.gone:
            return None
        if isinstance(node, MapNode):
            return self._chain_at(node)
        sum_ = Sum.at(node, self._tensors) if isinstance(node, OpNode) else None
        if sum_ is None:
            return None
        terms: dict[Value, list[Term]] = {}
        blocked: dict[Value, Stop] = {}
        for leaf in sum_.leaves:
            for term in self._branches.terms(leaf, blocked):
                terms.setdefault(term.source, []).append(term)
        stops: list[Stop] = []
        for source, together in terms.items():
            if source in blocked:
                stops.append(blocked[source])
            if len(together) < 2 or all(term.what is None for term in together):
                continue
            found = self._put_together(sum_, source, together)
            if isinstance(found, Found):
                return found
            stops += [] if found is None else [found]
        return stops[0] if stops else None

    def _put_together(self, sum_: Sum, source: Value, terms: Sequence[Term]) -> "Found | Stop | None":
        """Makes the largest possible maps of the terms of one value; the first that can be made is the result."""
        maps = [term.what for term in terms if isinstance(term.what, Kernel)]
        stops: list[Stop] = []
        if maps:
            shape = self._tensors.shape(source) or (None,) * max(len(kernel.axes) for kernel in maps)
            sizes = [size if isinstance(size, int) else None for size in shape]
            maps.sort(key=lambda kernel: kernel.multiply_adds, reverse=True)
            kernels = {term: kernel for term in terms if (kernel := _kernel(term, maps)) is not None}
            for cluster in _clusters(kernels, sizes, stops):
                found = _first_made(self._map_of(sum_, part, kernels, sizes) for part in _parts(cluster))
                if isinstance(found, Found):
                    return found
                stops.append(found)
        affines = {term: affine for term in terms if (affine := _affine(term)) is not None}
        if self._compose and len(affines) > 1 and any(map(_is_batch_norm, affines)):
            parts = [part for part in _parts([*affines]) if any(map(_is_batch_norm, part))]
            found = _first_made(self._affine_of(sum_, part, affines) for part in parts)
            if isinstance(found, Found):
                return found
            stops.append(found)
        return stops[0] if stops else None

    def _map_of(
        self, sum_: Sum, terms: Sequence[Term], kernels: Mapping[Term, Kernel], sizes: Sequence[int | None]
    ) -> Found | Stop:
        kernel = total([kernels[term] for term in terms], [term.leaf.factor for term in terms], sizes)
        if isinstance(kernel, Stop):
            return kernel
        if kernel.multiply_adds > kernel.cost:
            return _more_work(kernel.multiply_adds, kernel.cost)
        stop = Stop(StopCode.NO_RULE, "no map among them could stand for all of them")
        # One that need not change its window comes first, and of these one that is a single node.
        for carrier in sorted(terms, key=lambda term: (kernels[term].axes != kernel.axes, len(term.path))):
            target = next((node for node in carrier.path if not is_identity(node)), None)
            if not isinstance(target, MapNode) or any(isinstance(node, AffineNode) for node in carrier.path):
                continue
            if not kernel.is_affine and any(map(self._is_affine, carrier.path)):
                continue  # what is an affine now, or was before a fold, does not become more than that
            rewired = sum_.without([term.leaf for term in terms if term is not carrier], carrier.leaf)
            if isinstance(rewired, Stop):
                stop = rewired
                continue
            folding = Folding(as_map(kernel, self._tensors.linear(target), 1 / rewired.factor))
            defect = folding.defect()
            if defect is not None:
                return Stop(StopCode.OVERFLOW, f"{target.op_type} '{target.name}': {defect}")
            junction = self._junction(terms, carrier, target, rewired)
            if isinstance(junction, Stop):
                stop = junction
                continue
            linear = folding.linear
            merge = Merge(
                nodes=_names(junction),
                kind=MergeKind.BRANCHES,
                target=target.name,
                branches=len(terms),
                kernels=tuple(kernels[term].size if isinstance(term.what, Kernel) else () for term in terms),
                kernel=kernel.size,
                multiply_adds_before=kernel.cost,
                multiply_adds=kernel.multiply_adds,
                parameters_before=kernel.parameters,
                parameters=prod(linear.weight.shape) + (0 if linear.bias is None else prod(linear.bias.shape)),
                batch_norms=_batch_norms(junction),
            )
            return Found(junction, merge, folding, None)
        return stop

    def _is_affine(self, node: Node) -> bool:
        kernel = self._branches.kernel(node) if isinstance(node, MapNode) else None
        return kernel is not None and kernel.is_affine

    def _affine_of(self, sum_: Sum, terms: Sequence[Term], affines: Mapping[Term, Affine]) -> Found | Stop:
        """The affine that all terms add up to, in the place of the first BN among them that can stand for them."""
        carriers = filter(_is_batch_norm, terms)
        return _first_made(self._affine_at(sum_, terms, affines, carrier) for carrier in carriers)

    def _affine_at(
        self, sum_: Sum, terms: Sequence[Term], affines: Mapping[Term, Affine], carrier: Term
    ) -> Found | Stop:
        target = next(node for node in carrier.path if isinstance(node, AffineNode))
        rewired = sum_.without([term.leaf for term in terms if term is not carrier], carrier.leaf)
        if isinstance(rewired, Stop):
            return rewired
        own = self._affines[target]
        scale, shift = np.zeros((1,) * own.rank), np.zeros((1,) * own.rank)
        for term in terms:
            factor = term.leaf.factor / rewired.factor
            scale, shift = scale + factor * affines[term].scale, shift + factor * affines[term].shift
        affine = Affine(scale, shift)
        if grows(own, scale, shift):
            return Stop(StopCode.VARIES, f"'{target.name}' would vary along more axes than it does")
        if not affine.fits(target.inputs[0].dtype):
            return Stop(StopCode.OVERFLOW, f"added up in '{target.name}' they cannot be stored")
        junction = self._junction(terms, carrier, target, rewired)
        if isinstance(junction, Stop):
            return junction
        channels = max(affine.scale.size, affine.shift.size)
        count = len([term for term in terms if term.what is not None])
        merge = Merge(
            nodes=_names(junction),
            kind=MergeKind.BRANCHES,
            target=target.name,
            branches=len(terms),
            kernels=((),) * len(terms),
            kernel=(),
            multiply_adds_before=count * channels,
            multiply_adds=channels,
            parameters_before=2 * count * channels,
            parameters=2 * channels,
            batch_norms=_batch_norms(junction),
        )
        return Found(junction, merge, None, affine)

    def _junction(
        self,
        terms: Sequence[Term],
        carrier: Term,
        target: MapNode | AffineNode,
        rewired: Rewired,
    ) -> Junction | Stop:
        behind = carrier.path[carrier.path.index(target) + 1 :]
        between = (self._tensors.root(node.inputs[0]) for node in behind if not is_identity(node))
        junction = Junction(
            target=target,
            collapsed=(*((node, 0) for node in _collapsing(behind, target, carrier.leaf)), *rewired.collapsed),
            bypassed=rewired.bypassed,
            gone=(*(node for term in terms if term is not carrier for node in term.path), *rewired.gone),
            changed=(target.outputs[0], *(node.outputs[0] for node in behind), *rewired.changed),
            reshaped=(*between, *rewired.smaller),
            after=0,
        )
        return self._measured(junction) or junction

    def _measured(self, junction: Junction) -> Stop | None:
        """Why values must keep their shapes that a junction would take away or change."""
        gone = (*junction.gone, *(node for node, _ in junction.bypassed))
        for value in (*(output for node in gone for output in node.outputs), *junction.reshaped):
            names = self._tensors.measures(
                self._tensors.root(value), (*gone, *(node for node, _ in junction.collapsed))
            )
            if names:
                reason = f"the shape or the element type of '{value.name}' is read by {listed(iter(names), len(names))}"
                return Stop(StopCode.SHAPE_IS_READ, reason)
        return None

    def _chain_at(self, second: MapNode) -> "Found | Stop | None":
        """A map and the one that reads it as one, where that is less work."""
        if second.linear.window is None:
            return None
        root = self._tensors.root(second.inputs[0])
        first = root.producer
        if not isinstance(first, MapNode) or first.linear.window is None:
            return None
        if seen_by_others(self._tensors, root, second) is not None:
            return None
        before, after = self._branches.kernel(first), self._branches.kernel(second)
        if before is None or after is None or not chain_is_less_work(before, after):
            return None
        kernel = chain(before, after)
        if isinstance(kernel, Stop):
            return kernel if kernel.code is not StopCode.NO_RULE else None
        folding = Folding(as_map(kernel, self._tensors.linear(first), 1.0))
        defect = folding.defect()
        if defect is not None:
            return Stop(StopCode.OVERFLOW, f"{first.op_type} '{first.name}': {defect}")
        junction = Junction(first, ((second, 0),), (), (), (first.outputs[0],), (root,), 0)
        stop = self._measured(junction)
        if stop is not None:
            return stop
        linear = folding.linear
        merge = Merge(
            nodes=(second.name,),
            kind=MergeKind.CHAIN,
            target=first.name,
            branches=1,
            kernels=(before.size, after.size),
            kernel=kernel.size,
            multiply_adds_before=kernel.cost,
            multiply_adds=kernel.multiply_adds,
            parameters_before=kernel.parameters,
            parameters=prod(linear.weight.shape) + (0 if linear.bias is None else prod(linear.bias.shape)),
            batch_norms=0,
        )
        return Found(junction, merge, folding, None)


def _kernel(term: Term, maps: Sequence[Kernel]) -> Kernel | None:
    """What a term is as a kernel: an affine is one like the first of the maps that it can be like."""
    if isinstance(term.what, Kernel):
        return term.what
    alike = (of_affine(term.what, like) for like in maps)
    return next((kernel for kernel in alike if kernel is not None), None)


def _affine(term: Term) -> Affine | None:
    """What a term is as an affine; a map may do what one does."""
    if isinstance(term.what, Kernel):
        return as_affine(term.what)
    return term.what or Affine(np.ones(()), np.zeros(()))


def _parts(terms: Sequence[Term]) -> Iterable[Sequence[Term]]:
    """All of the terms, and where they cannot become one, fewer of them."""
    sizes = range(len(terms), 1, -1)
    return islice(in_a_row.from_iterable(combinations(terms, size) for size in sizes), _MOST_PARTS)


def _first_made(attempts: Iterable[Found | Stop]) -> Found | Stop:
    """The first attempt that can be made; if there is none, why the first cannot."""
    stop: Stop | None = None
    for attempt in attempts:
        if isinstance(attempt, Found):
            return attempt
        stop = stop or attempt
    assert stop is not None  # nobody asks without an attempt
    return stop


def _clusters(kernels: Mapping[Term, Kernel], sizes: Sequence[int | None], stops: list[Stop]) -> list[list[Term]]:
    """Puts terms together, the costliest first, where the map that they become is no more work than they are now."""
    clusters: list[tuple[list[Term], int]] = []
    for term in sorted(kernels, key=lambda term: kernels[term].multiply_adds, reverse=True):
        own = kernels[term].cost
        for index, (members, work) in enumerate(clusters):
            together = [*members, term]
            kernel = total([kernels[member] for member in together], [1.0] * len(together), sizes)
            if isinstance(kernel, Stop):
                stops.append(kernel)
            elif kernel.multiply_adds > work + own:
                stops.append(_more_work(kernel.multiply_adds, work + own))
            else:
                clusters[index] = together, kernel.multiply_adds
                break
        else:
            clusters.append(([term], own))
    return [members for members, _ in clusters if len(members) > 1]


def _more_work(together: int, apart: int) -> Stop:
    return Stop(StopCode.MORE_WORK, f"as one map they would take {together} multiply-adds instead of {apart}")


def _collapsing(behind: Sequence[Node], target: Node, leaf: Leaf) -> Sequence[Node]:
    """The nodes behind the target that go away: all, unless that is between casts of which one has to stay."""
    if target.outputs[0].dtype == leaf.value.dtype:
        return behind
    return [node for node in behind if not (isinstance(node, OpNode) and isinstance(node.parameters, RoundTrip))]


def _is_batch_norm(term: Term) -> bool:
    nodes = () if isinstance(term.what, Kernel) else term.path
    return any(isinstance(node, AffineNode) and node.kind is Kind.BATCH_NORM for node in nodes)


def _part(junction: Junction) -> list[Node]:
    nodes = [*junction.gone, *(node for node, _ in junction.collapsed)]
    return [node for node in nodes if isinstance(node, MapNode | AffineNode) or pool_of(node) is not None]


def _names(junction: Junction) -> tuple[str, ...]:
    return tuple(node.name for node in _part(junction))


def _batch_norms(junction: Junction) -> int:
    return len([node for node in _part(junction) if isinstance(node, AffineNode) and node.kind is Kind.BATCH_NORM])
