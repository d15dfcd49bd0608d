"""What each value is called after a plan is carried out.

An affine that goes away makes its input and its output one tensor. Going backward it leaves the tensor with the value
that its output had, so the tensor takes the output's name; going forward, with the value of its input, and the input's
name; going both ways, with neither. Where branches become one map, their sum keeps its name, and so does the result of
the second of two maps in a row, and what is left alone of an addition. Everything between a map and its affine differs
from the original, and gets a name that the original did not have.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

from bnfold.graph import Node, Value
from bnfold.planning.plan import Direction, Junction, Plan, Step


class Renaming:
    """The names of the values that the steps of a plan touch.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._parents: dict[Value, Value] = {}
        self._names: dict[Value, str | None] = {}
        self._beside: dict[Value, Node] = {}
        self._shaped: dict[Value, list[Value]] = defaultdict(list)  # those of a tensor that are not in `reshaped`
        self.reshaped: set[Value] = set()
        """Values whose tensor has another shape now."""
        junctions = [*reversed(plan.junctions)]
        for index, step in enumerate((*plan.steps, None)):
            while junctions and junctions[-1].after == index:
                self._join(junctions.pop())
            if step is not None:
                self._move(step)
        gone = {value for junction in plan.junctions for node in junction.gone for value in node.outputs}
        lost = {self._root(value) for value in gone}
        self._beside = {value: node for value, node in self._beside.items() if self._root(value) not in lost}

    def _move(self, step: Step) -> None:
        source, target = step.source.inputs[0], step.source.outputs[0]
        for value in (source, target, *step.changed):
            self._touch(value, step.source)
            self._beside[value] = step.source
        for value in step.changed:
            self._names[self._root(value)] = None
        kept = self._root(target if step.direction is Direction.BACKWARD else source)
        name = None if step.direction is Direction.BOTH else self._names.get(kept, kept.name)
        self._unite(target, source, name)

    def _join(self, junction: Junction) -> None:
        for value in junction.changed:
            self._touch(value, junction.target)
            self._names[self._root(value)] = None
        for value in junction.reshaped:
            self.reshaped.update(self._shaped.pop(self._root(value), ()))
        for node, position in junction.collapsed:
            source, target = node.inputs[position], node.outputs[0]
            for value in (source, target):
                self._touch(value, junction.target)
            kept = self._root(target)
            self._unite(target, source, self._names.get(kept, kept.name))
        for node, position in junction.bypassed:
            target, source = node.outputs[0], node.inputs[position]
            self._touch(target, junction.target)
            self.reshaped.add(target)
            kept = self._root(source)
            self._unite(target, source, self._names.get(kept, kept.name))

    def _touch(self, value: Value, node: Node) -> None:
        if value not in self._beside:
            self._beside[value] = node
            self._shaped[self._root(value)].append(value)

    def _unite(self, first: Value, second: Value, name: str | None) -> None:
        child, root = self._root(first), self._root(second)
        self._parents[child] = root
        self._names[root] = name
        few, many = sorted((self._shaped.pop(child, []), self._shaped.pop(root, [])), key=len)
        many.extend(few)
        self._shaped[root] = many

    def final(self, fresh: Callable[[str], str]) -> Iterator[tuple[Node, Value, str]]:
        """Each value that is called something else in the end, with its new name.

        Args:
            fresh: Gives a name that begins with another and that the original did not have.

        Yields:
            A node in the same graph as the value; the value; its new name.
        """
        new_names: dict[Value, str] = {}
        for value, node in self._beside.items():
            root = self._root(value)
            name = self._names.get(root, root.name)
            if name is None:
                name = new_names.get(root) or fresh(f"{root.name}_folded")
                new_names[root] = name
            if name != value.name:
                yield node, value, name

    def _root(self, value: Value) -> Value:
        root = value
        while root in self._parents:
            root = self._parents[root]
        while value is not root:  # the next search from here is one step long
            self._parents[value], value = root, self._parents[value]
        return root
