"""What shares memory in one graph, and what is changed in place while something else still reads it.

The neutral graph is one of values that never change. An operator that changes its argument in place (`relu_`, `add_`)
is like its pure twin only if nothing reads that memory afterwards but through its result. Memory is tracked by groups
of nodes that may share it: views, in-place results, and everything whose operator does not promise a fresh result.

A batch norm that is folded away makes its output the memory of its input. If one of the two is then changed in place
while the other is still read, the output must stay what it is: the fold may go backward, where nothing else reads the
input, but not forward.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import fx

from bnfold.reasons import Stop, StopCode
from bnfold.torch.fx.nodes import element_reads
from bnfold.torch.lift.memory.effects import shares_with, written


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    """A node that changes the memory of one of its arguments."""

    node: fx.Node
    target: fx.Node


class Memory:
    """Who shares memory with whom in one graph.

    Args:
        graph: The graph; for a nested one, what its placeholders stand for is read outside afterwards.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._position = {node: position for position, node in enumerate(graph.nodes)}
        self._groups = _Groups()
        self._writes: list[_Write] = []
        for node in graph.nodes:
            for read in shares_with(node):
                self._groups.join(node, read)
            self._writes += [_Write(node, target) for target in written(node, _changed_inside)]
        self._writers = {write.node for write in self._writes}
        self._last_reads: dict[fx.Node, int] = {}
        self._stops: dict[fx.Node, Stop] = {}
        reach = _Reach(self._position, self._groups, self._last_read)
        for write in self._writes:
            late = reach.late(write)
            if late is not None:
                reason = (
                    f"is changed in place by '{write.node.name}', and '{late.name}' with the same memory is read later"
                )
                self._stops.setdefault(self._groups.root(write.target), Stop(StopCode.MUTATED, reason))

    @property
    def variable(self) -> frozenset[fx.Node]:
        """The nodes whose memory is changed at some time."""
        changed = {self._groups.root(write.target) for write in self._writes}
        return frozenset(node for node in self._position if self._groups.root(node) in changed)

    @property
    def written_placeholders(self) -> frozenset[fx.Node]:
        """The placeholders whose memory is changed."""
        return frozenset(node for node in self.variable if node.op == "placeholder")

    def changes(self, node: fx.Node) -> bool:
        """Whether a node changes the memory of an argument."""
        return node in self._writers

    def stop(self, node: fx.Node) -> Stop | None:
        """Why the value of a node must stay what it is: its memory is changed while others read it."""
        return self._stops.get(self._groups.root(node))

    def endangered(self, affines: Iterable[tuple[fx.Node, fx.Node]]) -> Iterator[tuple[fx.Node, Stop]]:
        """The affines whose removal could let a change in place reach what it did not reach before.

        Each that is next to the memory which would be reached is named: while it stays, or goes backward, which needs
        an input that nothing else reads, the change does not get there.

        Args:
            affines: The node that computes the input, and the one that computes the output, of each affine.

        Yields:
            The output of such an affine, and why it must stay what it is.
        """
        pairs = [*affines] if self._writes else []
        merged = self._groups.copy()
        for source, target in pairs:
            merged.join(source, target)
        reach = _Reach(self._position, merged, self._last_read)
        reasons: dict[fx.Node, Stop] = {}
        for write in self._writes:
            if reach.late(write) is None:
                continue
            here = self._groups.root(write.target)
            for late in reach.all_late(write):
                group = self._groups.root(late)
                if group is not here:
                    reason = (
                        f"or its input is changed in place by '{write.node.name}' while the other, '{late.name}', is"
                        " still read, and without the affine they would share their memory"
                    )
                    reasons.setdefault(group, Stop(StopCode.MUTATED, reason))
        for source, target in pairs:
            stop = reasons.get(self._groups.root(source)) or reasons.get(self._groups.root(target))
            if stop is not None:
                yield target, stop

    def twice_outside(self, affines: Iterable[tuple[fx.Node, fx.Node]]) -> Iterator[tuple[fx.Node, Stop]]:
        """The affines of one value of which several results get out of the graph, each in memory of its own.

        Args:
            affines: As for `endangered`.

        Yields:
            The output of such an affine, and why it must stay what it is.
        """
        pairs = [*affines]
        read = Counter(source for source, _ in pairs)
        outside = [(source, target) for source, target in pairs if read[source] > 1 and self._gets_out(target)]
        results = Counter(source for source, _ in outside)
        for source, target in outside:
            if results[source] > 1:
                reason = f"gets out of the graph, as others that are made of '{source.name}' do in memory of their own"
                yield target, Stop(StopCode.MUTATED, reason)

    def _gets_out(self, node: fx.Node) -> bool:
        return any(user.op == "output" for member in self._groups.members(node) for user in member.users)

    def _last_read(self, node: fx.Node) -> int:
        """The position of the last node that reads a value; beyond the graph for what lives on outside."""
        if node not in self._last_reads:
            reads = (self._position[user] for user in node.users if any(read is node for read in element_reads(user)))
            lives_on = node.op in ("placeholder", "get_attr")
            self._last_reads[node] = len(self._position) if lives_on else max(reads, default=-1)
        return self._last_reads[node]


class _Reach:
    """Which values of a group of memory are read later than some moment, although they are older."""

    def __init__(self, position: Mapping[fx.Node, int], groups: "_Groups", last_read: Callable[[fx.Node], int]) -> None:
        self._position = position
        self._groups = groups
        self._last_read = last_read
        self._profiles: dict[fx.Node, tuple[list[int], list[fx.Node]]] = {}

    def late(self, write: _Write) -> fx.Node | None:
        """The value that is read last of those that a write changes under their readers, if there are any."""
        births, longest = self._profile(write.target)
        moment = self._position[write.node]
        older = bisect_left(births, moment)
        if older == 0 or self._last_read(longest[older - 1]) <= moment:
            return None
        return longest[older - 1]

    def all_late(self, write: _Write) -> Iterator[fx.Node]:
        """All of them."""
        moment = self._position[write.node]
        for node in self._groups.members(write.target):
            if self._position[node] < moment < self._last_read(node):
                yield node

    def _read_later(self, one: fx.Node, other: fx.Node) -> fx.Node:
        return one if self._last_read(one) >= self._last_read(other) else other

    def _profile(self, node: fx.Node) -> tuple[list[int], list[fx.Node]]:
        """The positions of the members of a group, and for each the member read last of those up to there."""
        root = self._groups.root(node)
        if root not in self._profiles:
            members = sorted(self._groups.members(root), key=self._position.__getitem__)
            longest = [*accumulate(members, self._read_later)]
            self._profiles[root] = ([self._position[member] for member in members], longest)
        return self._profiles[root]


class _Groups:
    """Disjoint sets of nodes."""

    def __init__(self) -> None:
        self._parents: dict[fx.Node, fx.Node] = {}
        self._members: dict[fx.Node, list[fx.Node]] = {}

    def copy(self) -> "_Groups":
        groups = _Groups()
        groups._parents = dict(self._parents)
        groups._members = {root: [*members] for root, members in self._members.items()}
        return groups

    def root(self, node: fx.Node) -> fx.Node:
        root = node
        while root in self._parents:
            root = self._parents[root]
        while node is not root:
            self._parents[node], node = root, self._parents[node]
        return root

    def members(self, node: fx.Node) -> list[fx.Node]:
        root = self.root(node)
        return self._members.get(root, [root])

    def join(self, first: fx.Node, second: fx.Node) -> None:
        kept, joined = self.root(first), self.root(second)
        if kept is joined:
            return
        if len(self.members(kept)) < len(self.members(joined)):
            kept, joined = joined, kept
        self._members[kept] = self.members(kept) + self.members(joined)
        self._members.pop(joined, None)
        self._parents[joined] = kept


def _changed_inside(nested: fx.Graph) -> frozenset[fx.Node]:
    return Memory(nested).written_placeholders
