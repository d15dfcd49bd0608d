"""Programs that read memory in the order in which it happens to lie.

`as_strided` does: what it returns depends on how the tensor before it is laid out. A batch norm or a multiplication
keeps the layout of a tensor that is contiguous, or has its channels last, and may change any other; torch.export does
not always know which. So where a graph has such an operator, only affines of well laid out values go away.
"""

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from bnfold.graph import Graph
from bnfold.reasons import Stop, StopCode
from bnfold.torch.fx.nodes import fake_tensor, operator_name
from bnfold.torch.lift.provenance import Handle

_READS_MEMORY_ORDER = frozenset({"as_strided", "as_strided_copy", "as_strided_scatter", "_reshape_alias", "set"})
_WELL_KNOWN = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
_RANKS = {torch.channels_last: 4, torch.channels_last_3d: 5}


def keep_memory_order(graph: Graph) -> None:
    """Lets affines stay that might be what gives a value the layout that the program reads.

    Args:
        graph: A lifted program; its affines change.
    """
    readers: dict[fx.Graph, fx.Node | None] = {}
    for node in graph.affines:
        handle = node.handle
        if not isinstance(handle, Handle) or node.affine is None:
            continue
        nodes = handle.scope.graph.nodes
        if handle.scope.graph not in readers:
            found = (other for other in nodes if operator_name(other) in _READS_MEMORY_ORDER)
            readers[handle.scope.graph] = next(found, None)
        reader = readers[handle.scope.graph]
        if reader is not None and not _is_well_laid_out(handle.scope.graph, node.inputs[0].name):
            reason = f"it may give its output the memory layout that '{reader.name}' reads"
            node.affine, node.stop = None, Stop(StopCode.NO_RULE, reason)


def _is_well_laid_out(graph: fx.Graph, name: str) -> bool:
    source = next((node for node in graph.nodes if node.name == name), None)
    fake = None if source is None else fake_tensor(source)
    if fake is None:
        return False
    rank = fake.dim()
    try:
        return any(fake.is_contiguous(memory_format=form) for form in _WELL_KNOWN if _RANKS.get(form, rank) == rank)
    except GuardOnDataDependentSymNode:  # sizes depend on values
        return False
