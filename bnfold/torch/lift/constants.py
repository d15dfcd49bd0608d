"""What is known about one graph of a program before it runs: parameters, buffers, and expressions made of them.

Weights come as parameters, as views of them (`weight.t()`), as what a parametrization computes (weight_norm,
spectral_norm), or as what a forward method computes anew each time (a frozen BatchNorm). Such an expression is
evaluated when something reads it: smooth operators in float64, so that one rounding at the end is all that happens to a
weight, all others, rounding and casts among them, as they are.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from bnfold.algebra.rounding import Array, DType
from bnfold.errors import UnsupportedModelError
from bnfold.torch.fx.function_transforms import is_wrapped
from bnfold.torch.fx.graph_copy import attribute
from bnfold.torch.fx.nodes import (
    all_reads,
    arguments,
    fake_tensor,
    fake_tensors,
    is_batch_norm,
    is_tuple_item,
    operator_name,
    shape_of,
)
from bnfold.torch.fx.tensors import numpy_dtype, to_numpy
from bnfold.torch.lift.evaluation import is_pure, quantises, run

_MOST_ELEMENTS = 1 << 28
"""An expression with a result larger than this is not evaluated."""

_TENSORS = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR})
_SAME_TENSOR = frozenset("detach alias lift_fresh".split())
_KEPT_ELEMENTS = 1 << 16
"""Larger results are computed again when they are read, unless somebody still holds the last one."""


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A constant of a graph; a `bnfold.algebra.tensor.Tensor`.

    Attributes:
        shape: Its shape.
        dtype: The element type that the program gives it.
        parameter: The name (FQN) of the parameter or buffer that it is; None for an expression.
        parameters: The names of all parameters and buffers that it is made of, tied ones by the first of their names.
        node: The node that computes it.
    """

    shape: tuple[int, ...]
    dtype: DType
    parameter: str | None
    parameters: tuple[str, ...]
    node: fx.Node
    _read: Callable[[], Array]

    def read(self) -> Array:
        """The values, not to be changed; of an expression perhaps in float64, not rounded to `dtype` yet.

        Raises:
            UnsupportedModelError: The expression cannot be evaluated.
        """
        return self._read()


class Constants:
    """The constants of one graph.

    Args:
        program: The program that the graph is part of.
        graph: The graph.
        variable: The nodes of the graph whose value is changed in place, or once the program has run.
        names: For each parameter and buffer of the program, the first of its names.
        prefix: What the names of parameters and buffers begin with in `Constant.parameters`.
        given: For a nested graph: the constants of the graph around it, and which node there gives each placeholder
            its value.
    """

    def __init__(
        self,
        program: ExportedProgram,
        graph: fx.Graph,
        variable: frozenset[fx.Node],
        names: Mapping[str, str],
        prefix: str = "",
        given: "tuple[Constants, Mapping[fx.Node, fx.Node]] | None" = None,
    ) -> None:
        self._program = program
        self._graph = graph
        self._names = names
        self._prefix = prefix
        self._outer = None if given is None else given[0]
        self._given: Mapping[fx.Node, fx.Node] = {} if given is None else given[1]
        self._specs = {} if given is not None else {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._changed: frozenset[object] = given[0]._changed if given is not None else self._memories_of(variable)
        self._parameters: dict[fx.Node, tuple[str, ...]] = {}
        self._order: dict[fx.Node, int] = {}
        self._kept: dict[fx.Node, torch.Tensor] = {}
        self._last: weakref.WeakValueDictionary[fx.Node, Array] = weakref.WeakValueDictionary()
        for position, node in enumerate(graph.nodes):
            self._order[node] = position
            made_of = None if node in variable else self._made_of(node)
            if made_of is not None:
                self._parameters[node] = made_of

    def is_constant(self, node: object) -> bool:
        """Whether an argument is a node whose value is known before the graph runs; nothing is computed to find out."""
        return isinstance(node, fx.Node) and node in self._parameters

    def parameters(self, node: fx.Node) -> tuple[str, ...]:
        """The names of the parameters and buffers that the constant arguments of a node are made of."""
        made_of = (self._parameters.get(read, ()) for read in all_reads(node))
        return tuple(dict.fromkeys(name for names in made_of for name in names))

    def stored(self, fqn: str) -> Array | None:
        """The values of a parameter or buffer by its name in the program, None if there is none or it may change."""
        found = self._stored(fqn)
        return None if found is None or _memory(found) in self._changed else to_numpy(found)

    def find(self, node: object) -> Constant | None:
        """The constant that a node computes, or None if it is none, or several."""
        if not isinstance(node, fx.Node) or node not in self._parameters:
            return None
        fake = fake_tensor(node)
        shape, dtype = shape_of(fake), None if fake is None else numpy_dtype(fake.dtype)
        if shape is None or dtype is None:
            return None
        known = tuple(size for size in shape if isinstance(size, int))
        if len(known) != len(shape):
            return None
        return Constant(known, dtype, self._parameter(node), self._parameters[node], node, lambda: self._array(node))

    def _made_of(self, node: fx.Node) -> tuple[str, ...] | None:
        """The parameters that a node is made of, None if it is not constant."""
        if node.op == "placeholder":
            if self._outer is not None:
                return self._outer._parameters.get(self._given[node]) if node in self._given else None
            found = self._placeholder(node)
            if found is None:
                return None
            fqn, kind = found
            return () if kind is InputKind.CONSTANT_TENSOR else (self._name(fqn),)
        if node.op == "get_attr":
            return () if isinstance(self._attribute(node), torch.Tensor) else None
        if not is_tuple_item(node) and not is_pure(node):
            return None
        reads = [*all_reads(node)]
        if any(read not in self._parameters for read in reads) or not _is_small(node) or _is_batch_norm(node):
            return None
        made_of = tuple(dict.fromkeys(name for read in reads for name in self._parameters[read]))
        return None if made_of and quantises(node) else made_of

    def _placeholder(self, node: fx.Node) -> tuple[str, InputKind] | None:
        """The name and kind of the tensor that a placeholder stands for, if the program holds its values."""
        spec = self._specs.get(node.name)
        if spec is None or spec.kind not in _TENSORS or spec.target is None:
            return None
        stored = self._stored(spec.target)
        return None if stored is None or _memory(stored) in self._changed else (spec.target, spec.kind)

    def _stored(self, fqn: str) -> torch.Tensor | None:
        found = self._program.state_dict.get(fqn)
        found = self._program.constants.get(fqn) if found is None else found
        return found if isinstance(found, torch.Tensor) and _has_values(found) else None

    def _memories_of(self, variable: frozenset[fx.Node]) -> frozenset[object]:
        """The memories of the parameters and buffers that change, under whatever names they may also be read."""
        specs = (self._specs.get(node.name) for node in variable)
        stored = (self._stored(spec.target) for spec in specs if spec is not None and spec.target is not None)
        return frozenset(_memory(tensor) for tensor in stored if tensor is not None)

    def _attribute(self, node: fx.Node) -> object:
        module = self._graph.owning_module
        return None if module is None else attribute(module, str(node.target))

    def _name(self, fqn: str) -> str:
        canonical = self._names[fqn]
        return f"{self._prefix}.{canonical}" if self._prefix else canonical

    def _parameter(self, node: fx.Node) -> str | None:
        """The name of the parameter or buffer that a node is."""
        while node.op == "call_function" and operator_name(node) in _SAME_TENSOR:
            node = next(all_reads(node))
        if node.op != "placeholder":
            return None
        if self._outer is not None:
            return self._outer._parameter(self._given[node])
        return next(iter(self._parameters[node]), None)

    def _array(self, node: fx.Node) -> Array:
        """The value of a constant, evaluated unless somebody still holds it."""
        array = self._last.get(node)
        if array is None:
            array = to_numpy(self._value(node))
            self._last[node] = array
        return array

    def _value(self, node: fx.Node) -> torch.Tensor:
        while node.op == "call_function" and operator_name(node) in _SAME_TENSOR:
            node = next(all_reads(node))
        stored = self._leaf(node)
        if stored is not None:
            return stored
        found: object = self._kept[node] if node in self._kept else self._evaluated(node)
        if not isinstance(found, torch.Tensor):
            message = f"'{node.name}' of the program computes no tensor, although its own records say so"
            raise UnsupportedModelError(message)
        if found.numel() <= _KEPT_ELEMENTS:
            self._kept[node] = found
        return found

    def _evaluated(self, node: fx.Node) -> object:
        needed: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            part = waiting.pop()
            if part not in needed:
                needed.add(part)
                waiting += [] if part.op in ("placeholder", "get_attr") else all_reads(part)
        values: dict[fx.Node, object] = {}
        for part in sorted(needed, key=self._order.__getitem__):
            leaf = self._leaf(part)
            values[part] = run(part, values) if leaf is None else leaf
        return values[node]

    def _leaf(self, node: fx.Node) -> torch.Tensor | None:
        if node.op == "get_attr":
            found = self._attribute(node)
            return found if isinstance(found, torch.Tensor) else None
        if node.op != "placeholder":
            return None
        if self._outer is not None:
            return self._outer._value(self._given[node])
        placeholder = self._placeholder(node)
        return None if placeholder is None else self._stored(placeholder[0])


def canonical_names(program: ExportedProgram) -> dict[str, str]:
    """For the name (FQN) of each tensor that a program holds, the first name of the same tensor.

    Tied parameters share their memory, and have the same place in it.
    """
    first: dict[object, str] = {}
    names: dict[str, str] = {}
    for name, tensor in (*program.state_dict.items(), *program.constants.items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        dense = tensor.layout is torch.strided and _has_values(tensor) and tensor.numel() > 0
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if dense else id(tensor)
        names[name] = first.setdefault(place, name)
    return names


def _memory(tensor: torch.Tensor) -> object:
    """What tensors that share memory have in common."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.untyped_storage().data_ptr()


def _has_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a plain one with elements that can be read."""
    plain = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    if not (type(tensor) in plain or type(tensor).__torch_dispatch__ is plain[0].__torch_dispatch__):
        return False
    if isinstance(tensor, FakeTensor) or is_wrapped(tensor):
        return False
    return tensor.device.type != "meta" and not tensor.is_quantized


def _is_small(node: fx.Node) -> bool:
    fakes = fake_tensors(node) or (fake_tensor(node),)
    shapes = [shape_of(fake) for fake in fakes]
    return all(
        shape is not None
        and all(isinstance(size, int) for size in shape)
        and prod(size for size in shape if isinstance(size, int)) <= _MOST_ELEMENTS
        for shape in shapes
    )


def _is_batch_norm(node: fx.Node) -> bool:
    """Whether a node is a BN layer that a plan has to account for, even if its input is constant.

    One that normalises weights with their own statistics (weight standardisation) is an expression like others.
    """
    return is_batch_norm(node) and arguments(node).get("running_mean") is not None
