"""What lifted programs say about the modules they came from: which calls there were, and what ran in each."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from bnfold.graph import Graph, Node
from bnfold.torch.capture.capture import Piece
from bnfold.torch.capture.recorded_calls import Call, recorded_calls
from bnfold.torch.lift.provenance import Handle, Scope, handle_of

CallKey = tuple[int, str]
"""A call of a module: the program that it is in, and what the program calls it."""


@dataclass(slots=True, eq=False)
class ModuleTrace:
    """Everything that ran inside of one module.

    Attributes:
        module: The module.
        calls: The nodes of each call, with the graph that they are in.
        nodes: The nodes of all calls.
    """

    module: nn.Module
    calls: dict[CallKey, list[tuple[Scope, fx.Node]]] = field(default_factory=lambda: defaultdict(list))
    nodes: set[fx.Node] = field(default_factory=set)


class Traces:
    """The calls of all modules.

    Args:
        root: The module that was captured.
        graph: Its graph.
        pieces: The programs that the graph was lifted from.
    """

    def __init__(self, root: nn.Module, graph: Graph, pieces: Sequence[Piece]) -> None:
        self._modules = dict(root.named_modules(remove_duplicate=False))
        self._traces: dict[nn.Module, ModuleTrace] = {}
        self._recorded: dict[int, tuple[Call, ...]] = {}
        for piece in pieces:
            self._recorded[id(piece.program)] = recorded_calls(piece.program, piece.path)
        for scope in _scopes(graph):
            for node in scope.graph.nodes:
                for path, call in handle_of(scope, node).outer_modules:
                    module = self._modules.get(path)
                    if module is not None:
                        trace = self._traces.setdefault(module, ModuleTrace(module))
                        trace.calls[id(scope.program), call].append((scope, node))
                        trace.nodes.add(node)

    def module(self, path: str | None) -> nn.Module | None:
        """The module with a path, whichever of its paths that is."""
        return None if path is None else self._modules.get(path)

    def trace(self, module: nn.Module) -> ModuleTrace:
        """What ran in a module; nothing if it was not called."""
        return self._traces.get(module) or ModuleTrace(module)

    def was_called(self, module: nn.Module) -> bool:
        """Whether anything ran in a module."""
        return module in self._traces

    def recorded(self, program: int) -> tuple[Call, ...]:
        """The calls that were recorded in a program."""
        return self._recorded[program]


def handle(node: Node) -> Handle:
    """Where a node of the neutral graph is in its program."""
    if not isinstance(node.handle, Handle):
        message = f"'{node.name}' was not lifted from a torch program"
        raise TypeError(message)
    return node.handle


def _scopes(graph: Graph) -> Iterator[Scope]:
    yield from dict.fromkeys(handle(node).scope for node in graph.nodes)
