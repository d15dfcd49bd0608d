"""What the example does not run, or torch.export could not follow, in the words of the graph."""

from collections.abc import Collection

from torch import nn

from bnfold.graph import AffineNode, Graph, Kind
from bnfold.reasons import Stop, StopCode
from bnfold.torch.capture.capture import Capture
from bnfold.torch.fx.tensors import memory
from bnfold.torch.module.module_calls import handle
from bnfold.torch.module.plan_entries import is_batch_norm_module


def explain_borders(graph: Graph, captured: Capture) -> None:
    """Says of the values at the borders of a captured part what is on the other side."""
    parts = {id(piece.program): piece.path for piece in captured.pieces if piece.path in captured.callers}
    for node in graph.nodes:
        scope = handle(node).scope
        if id(scope.program) not in parts or scope.caller is not None:
            continue
        caller = captured.callers[parts[id(scope.program)]]
        around = f"{_named(caller)}, which torch.export cannot follow ({captured.refusals[caller]})"
        for value in (*node.inputs, *node.outputs):
            if value.source.code is StopCode.MODEL_INPUT and value.producer is None:
                value.source = Stop(StopCode.NOT_CAPTURED, f"its input comes from the code of {around}")
            if value.observer is not None and value.observer.code is StopCode.MODEL_OUTPUT:
                value.observer = Stop(StopCode.NOT_CAPTURED, f"goes to the code of {around}")


def add_unreached(graph: Graph, present: Collection[nn.Module], root: nn.Module, captured: Capture) -> None:
    """Adds the batch norms that are nowhere in the graph, each with the reason.

    Args:
        graph: The graph.
        present: The modules that are in it.
        root: The module that was captured.
        captured: What was captured.
    """
    for path, module in root.named_modules():
        if not is_batch_norm_module(module) or module in present:
            continue
        stop = Stop(StopCode.NOT_REACHED, "the example does not run it")
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(memory(tensor) in captured.read_outside for tensor in held):
            reason = f"it runs in code that torch.export cannot follow ({captured.reason})"
            stop = Stop(StopCode.NOT_CAPTURED, reason)
        name = path or type(module).__name__
        graph.add(AffineNode(name=name, op_type="BatchNorm", kind=Kind.BATCH_NORM, stop=stop))


def _named(path: str) -> str:
    return f"'{path}'" if path else "the model"
