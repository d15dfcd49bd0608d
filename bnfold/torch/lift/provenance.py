"""How the nodes of the neutral graph point back into a program."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx
from torch.export import ExportedProgram

from bnfold.torch.fx.nodes import module_class, within
from bnfold.torch.lift.constants import Constants


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """One graph of a program: the main one, or one that it runs, as a branch of torch.cond or a region of autocast.

    Attributes:
        program: The program.
        graph: The graph.
        constants: What is constant in it.
        caller: For a nested graph: the scope around it, and the higher-order node there that runs it.
        prefix: What the names of its nodes begin with; for a program that is a part of a module, the path of the part.
        region: For a nested graph: where its module is, seen from the module of the program, such as "true_graph_0".
    """

    program: ExportedProgram
    graph: fx.Graph
    constants: Constants
    caller: "tuple[Scope, fx.Node] | None" = None
    prefix: str = ""
    region: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """Where a node of the neutral graph is in a program.

    Attributes:
        scope: Its graph.
        node: The node, or the first of several.
        chain: Those behind the first: the getitem that takes the result of a decomposed batch norm, the add of a
            matmul's bias, the rest of a spelled-out affine.
        module: The path of the innermost module that it ran in ("" is the root), prefix included; None if unknown.
        call: The key of that call of the module in `nn_module_stack`: it tells the calls of one module apart.
        outer_modules: The path and call key of every module that it ran in, outermost first, the innermost last.
        parameters: The names of the parameters and buffers that its constants are made of.
        keeps_layout: For an affine: whether its output has the strides of its input, as torch.export saw them. Where it
            has not, other strides reach what reads the output once the affine is gone, and a `view` there may fail.
        widened: For a cast to a wider type that affines pass: what gives values that are as precise as the narrower one
            then.
    """

    scope: Scope
    node: fx.Node
    chain: tuple[fx.Node, ...] = ()
    module: str | None = None
    call: str | None = None
    outer_modules: tuple[tuple[str, str], ...] = ()
    parameters: tuple[str, ...] = ()
    keeps_layout: bool = True
    widened: tuple[fx.Node, ...] = ()

    @property
    def last(self) -> fx.Node:
        """The node that computes its result."""
        return (self.node, *self.chain)[-1]


def handle_of(scope: Scope, node: fx.Node) -> Handle:
    """The handle of a single node, with the modules that it ran in."""
    stack = node.meta.get("nn_module_stack")
    modules: list[tuple[str, str]] = []
    for call, entry in (stack if isinstance(stack, Mapping) else {}).items():
        path = entry[0] if isinstance(entry, tuple) and entry else None
        if isinstance(path, str) and not path.startswith("_empty_nn_module_stack"):
            modules.append((within(scope.prefix, path), str(call)))
    module, call = modules[-1] if modules else (None, None)
    return Handle(scope, node, module=module, call=call, outer_modules=tuple(modules))


def is_frozen(node: fx.Node) -> bool:
    """Whether a node ran in a module that is called a frozen batch norm."""
    return "FrozenBatchNorm" in module_class(node)
