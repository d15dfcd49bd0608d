"""The records that an ExportedProgram keeps beside its graph, after nodes of the graph have changed their names."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import fx
from torch.export import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import InputSpec, OutputSpec

Spec = TypeVar("Spec", InputSpec, OutputSpec)


def with_own_argument(spec: Spec) -> Spec:
    """A copy of an entry of the signature; torch changes the names in the ones of a new program in place."""
    return replace(spec, arg=copy.copy(spec.arg))


def output_specs(specs: Sequence[OutputSpec], graph: fx.Graph) -> list[OutputSpec]:
    """The outputs of a program.

    Args:
        specs: Those of the original.
        graph: The main graph, whose output node gives the same values in the same order.
    """
    given = graph.output_node().args[0]
    values = given if isinstance(given, tuple | list) else (given,)
    renewed = [with_own_argument(spec) for spec in specs]
    for spec, value in zip(renewed, values, strict=True):
        if isinstance(value, fx.Node):
            spec.arg.name = value.name
    return renewed


def module_calls(
    entries: Iterable[ModuleCallEntry], names: Mapping[str, str], graph: fx.Graph
) -> list[ModuleCallEntry]:
    """Which modules were called, and with what.

    Args:
        entries: Those of the original.
        names: What the value that each node of the original gave is called now; without those that are gone.
        graph: The main graph.

    Returns:
        New entries. A call has no signature any more if all its nodes are gone, as those of a BN that was folded, or an
        input or output of it.
    """
    ran = {call for node in graph.nodes for call in _calls_around(node)}
    return [
        ModuleCallEntry(entry.fqn, _renamed(entry.signature, names) if entry.fqn in {"", *ran} else None)
        for entry in entries
    ]


def _calls_around(node: fx.Node) -> Iterator[str]:
    """The calls of modules that a node ran in, as a ModuleCallEntry names them: the second of "conv" is "conv@1"."""
    stack = node.meta.get("nn_module_stack")
    for call, entry in (stack if isinstance(stack, Mapping) else {}).items():
        _, repeated, number = call.partition("@")
        yield f"{entry[0]}{repeated}{number}"


def _renamed(signature: ModuleCallSignature | None, names: Mapping[str, str]) -> ModuleCallSignature | None:
    if signature is None:
        return None
    inputs, outputs = ([copy.copy(argument) for argument in side] for side in (signature.inputs, signature.outputs))
    for argument in (*inputs, *outputs):
        if argument.name and argument.name not in names:
            return None
        argument.name = names.get(argument.name, argument.name)
    return replace(signature, inputs=inputs, outputs=outputs)
