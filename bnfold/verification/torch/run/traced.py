"""A model as one graph of operations, with the values of its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from bnfold.torch.capture.copying import shadow
from bnfold.torch.capture.eager_run import run_first
from bnfold.torch.capture.export import Refused, trace
from bnfold.torch.fx.graph_copy import attribute
from bnfold.torch.fx.nodes import all_reads
from bnfold.verification.torch.run.sample import Sample
from bnfold.verification.torch.run.subject import Subject

_CALLS = ("call_function", "get_attr")


class NotTracedError(Exception):
    """Why there is no graph of a model: a clause."""


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """The graph of a model.

    Attributes:
        program: The exported program.
        nodes: The nodes that compute, in their order.
        stored: What is stored in the model: tensors, nested graphs and other objects, by placeholder or get_attr node.
        inputs: The placeholders of the inputs, in the order of the leaves of args and kwargs.
        names: For each stored tensor the name (FQN) of the parameter or buffer.
        varies: The nodes whose value depends on the inputs.
    """

    program: ExportedProgram
    nodes: tuple[fx.Node, ...]
    stored: Mapping[fx.Node, object]
    inputs: tuple[fx.Node, ...]
    names: Mapping[fx.Node, str]
    varies: frozenset[fx.Node]

    def order(self) -> dict[fx.Node, int]:
        """The position of each node."""
        return {node: index for index, node in enumerate(self.program.graph.nodes)}


def traced(subject: Subject, sample: Sample) -> Traced:
    """The graph of a model, exported on the spot if it is a module.

    Args:
        subject: The model.
        sample: What it is called with.

    Raises:
        NotTracedError: torch.export refuses it.
    """
    program = subject.program
    if program is None:
        module = shadow(subject.module)
        device = next((tensor.device for tensor in subject.state().values()), torch.device("cpu"))
        arguments = sample.moved(device)
        run_first(module, arguments)
        try:
            program = trace(module, arguments)
        except Refused as refused:
            raise NotTracedError(f"torch.export refuses {subject.label}: {refused.reason}") from refused
    return read(program)


def label(node: fx.Node) -> str:
    """What a report calls a node: the path of its module for a layer, else the path and the name of the node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return node.name
    path, kind = list(cast(Mapping[str, tuple[str, object]], stack).values())[-1]
    is_layer = str(kind).rpartition(".")[2].rstrip("'>").startswith(("Conv", "Linear", "BatchNorm"))
    if not path:
        return node.name
    return path if is_layer and any(read.op == "placeholder" for read in all_reads(node)) else f"{path}/{node.name}"


def read(program: ExportedProgram) -> Traced:
    """The graph of a program."""
    graph = program.graph
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    stored: dict[fx.Node, object] = {}
    names: dict[fx.Node, str] = {}
    inputs: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                inputs.append(node)
            elif spec.target is not None:
                found = program.state_dict.get(spec.target)
                stored[node] = program.constants.get(spec.target) if found is None else found
                names[node] = spec.target
        elif node.op == "get_attr":
            stored[node] = attribute(program.graph_module, str(node.target))
            names[node] = str(node.target)
    return Traced(
        program,
        tuple(node for node in graph.nodes if node.op == "call_function"),
        stored,
        tuple(inputs),
        names,
        _varying(graph.nodes, inputs),
    )


def _varying(nodes: Iterable[fx.Node], inputs: Iterable[fx.Node]) -> frozenset[fx.Node]:
    varies = set(inputs)
    for node in nodes:
        if node.op == "call_function" and any(read in varies for read in all_reads(node)):
            varies.add(node)
    return frozenset(varies)


def leaves_by_input(found: Traced, sample: Sample, device: torch.device) -> dict[fx.Node, object]:
    """The inputs of a program, on a device, by its placeholders.

    Raises:
        NotTracedError: The program takes another number of inputs.
    """
    leaves = pytree.tree_leaves(sample.moved(device))
    if len(leaves) != len(found.inputs):
        raise NotTracedError(f"the program takes {len(found.inputs)} inputs, and the sample has {len(leaves)}")
    return dict(zip(found.inputs, leaves, strict=True))
