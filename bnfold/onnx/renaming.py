"""What each value is called after a plan is carried out.

An affine that goes away makes its input and its output one tensor. Going backward it leaves the tensor with the value
that its output had, so the tensor takes the output's name; going forward, with the value of its input, and the input's
name; going both ways, with neither. Everything between a map and its affine differs from the original, and gets a name
that the original did not have.
"""

from collections.abc import Iterator

from bnfold.graph import Value
from bnfold.onnx.lift import Handle, Scope
from bnfold.onnx.names import FreshNames
from bnfold.plan import Direction, Plan


class Renaming:
    """The names of the values that the steps of a plan touch.

    Args:
        plan: A plan on a graph lifted from ONNX.
    """

    def __init__(self, plan: Plan) -> None:
        self._parents: dict[Value, Value] = {}
        self._names: dict[Value, str | None] = {}
        self._scopes: dict[Value, Scope] = {}
        for step in plan.steps:
            source, target = step.source.inputs[0], step.source.outputs[0]
            if isinstance(step.source.handle, Handle):
                for value in (source, target, *step.changed):
                    self._scopes[value] = step.source.handle.scope
            for value in step.changed:
                self._names[self._root(value)] = None
            kept = self._root(target if step.direction is Direction.BACKWARD else source)
            name = None if step.direction is Direction.BOTH else self._names.get(kept, kept.name)
            self._parents[self._root(target)] = self._root(source)
            self._names[self._root(source)] = name

    def final(self, names: FreshNames) -> Iterator[tuple[Scope, Value, str]]:
        """Each value that is called something else in the end, with its new name.

        Args:
            names: Where names for tensors that the original did not have come from.
        """
        new_names: dict[Value, str] = {}
        for value, scope in self._scopes.items():
            root = self._root(value)
            name = self._names.get(root, root.name)
            if name is None:
                name = new_names.get(root) or names.fresh(f"{root.name}_folded")
                new_names[root] = name
            if name != value.name:
                yield scope, value, name

    def _root(self, value: Value) -> Value:
        while value in self._parents:
            value = self._parents[value]
        return value
