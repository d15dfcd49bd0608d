"""Casts to a wider element type and back to the first; the same rules as for ONNX.

    y = round(s · widen(x) + t)

What comes in has the narrower type, and what goes out is rounded to it again, so the casts let affines pass as if they
were not there. Between them nothing may be seen from outside, and there may be one batch norm or one chain of
arithmetic with constants, then what cuts values off: two affines could overflow the narrower type one by one, where
both together do not.
"""

from collections.abc import Iterator, Mapping

from torch import fx

from bnfold.algebra.rounding import STORAGE_DTYPES, has_every_number_of
from bnfold.torch.fx.nodes import arguments, dtype_of, element_reads, fake_tensor, is_batch_norm, operator_name
from bnfold.torch.lift.constants import Constants

CASTS = frozenset("to _to_copy type_as".split())
_ARITHMETIC = frozenset("add sub rsub mul div".split())
_CUTS_OFF = frozenset("relu relu6 hardtanh clamp clamp_min clamp_max".split())
_STAGES = {
    ("widened", "batch norm"): "normalised",
    ("batch norm", "item"): "normalised",
    **{(stage, "arithmetic"): "chain" for stage in ("widened", "chain")},
    **{(stage, "cuts off"): "cut off" for stage in ("normalised", "chain", "cut off")},
}
"""What a value between the casts is, and what reads it → what the result is; nothing else may be there."""

_STORED = {dtype.name: dtype for dtype in STORAGE_DTYPES}


def round_trips(graph: fx.Graph, constants: Constants) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
    """Finds the casts of a graph that affines pass.

    Args:
        graph: The graph.
        constants: Its constants.

    Returns:
        The casts there, each with itself and what is between it and those back, and the casts back.
    """
    found: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in graph.nodes:
        source = _cast_from(node)
        if source is not None and _is_wider(_dtype(node), _dtype(source)):
            found.update(_there_and_back(node, _dtype(source), constants))
    return found


def _there_and_back(first: fx.Node, narrow: str, constants: Constants) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
    """A cast and those that lead back to what it widened; nothing if anything else reads it."""
    back: set[fx.Node] = set()
    between: list[fx.Node] = []
    waiting = [(first, "widened")]
    while waiting:
        value, stage = waiting.pop()
        readers = [*_readers(value)]
        if not readers:
            return {}
        between.append(value)
        for reader in readers:
            if _cast_from(reader) is value and _dtype(reader) == narrow:
                back.add(reader)
                continue
            following = _STAGES.get((stage, _kind(reader, value, constants)))
            if following is None:
                return {}
            several = following == "normalised" and fake_tensor(reader) is None
            waiting.append((reader, "batch norm" if several else following))
    return {first: tuple(between), **dict.fromkeys(back, ())}


def _readers(value: fx.Node) -> Iterator[fx.Node]:
    """What reads the elements of a value, or is an item of it."""
    for user in value.users:
        if user.op != "call_function" or value in element_reads(user):
            yield user


def _kind(reader: fx.Node, value: fx.Node, constants: Constants) -> str:
    """What a node does with a value, "" for anything that is not in the table."""
    if fake_tensor(value) is None:
        return "item" if reader.args[1:] == (0,) else ""
    if [*element_reads(reader)].count(value) != 1:
        return ""
    given = arguments(reader)
    others = [other for other in reader.all_input_nodes if other is not value]
    if is_batch_norm(reader) and given.get("input") is value:
        return "batch norm"
    if not all(map(constants.is_constant, others)):
        return ""
    name = operator_name(reader)
    return "arithmetic" if name in _ARITHMETIC else "cuts off" if name in _CUTS_OFF and not others else ""


def _cast_from(node: fx.Node) -> fx.Node | None:
    """What a cast casts."""
    source = arguments(node).get("self") if operator_name(node) in CASTS else None
    return source if isinstance(source, fx.Node) else None


def _dtype(node: fx.Node) -> str:
    return dtype_of(fake_tensor(node))


def _is_wider(wide: str, narrow: str) -> bool:
    return wide in _STORED and narrow in _STORED and has_every_number_of(_STORED[wide], _STORED[narrow])
