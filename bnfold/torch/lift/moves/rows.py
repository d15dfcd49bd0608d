"""Torch operators that affines move past: which row of the rule table each node has, and what that row needs to know.

Shapes are those that torch.export found. Where something is not known, or a node does more than the row says, it is
opaque.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from bnfold.graph import Chosen, Joined, Op, Parameters, Scattered, Signs
from bnfold.reasons import Stop, StopCode
from bnfold.torch.fx.nodes import display_name, dtype_of, fake_tensor, operator_name, shape_of
from bnfold.torch.lift.constants import Constants
from bnfold.torch.lift.moves.node_facts import Lifted, View
from bnfold.torch.lift.moves.rearranging import REARRANGING
from bnfold.torch.lift.moves.windows import WINDOWS
from bnfold.torch.lift.round_trips import CASTS

_BROADCASTING = frozenset({"add", "sub", "rsub", "mul", "div"})
_CHOICES = {"maximum": True, "minimum": True, "max": True, "min": True, "where": False}
"""Operators that take each element from one of two values, and whether the order of the two decides which."""
_SCATTERS = {"index_add": "source", "scatter_add": "src", "scatter_reduce": "src"}
"""Sums at places that an index names, and what their updates are called."""
_NONLINEAR = frozenset(
    "relu leaky_relu prelu relu6 hardtanh clamp clamp_min clamp_max sigmoid hardsigmoid hardswish gelu elu selu celu"
    " softplus softsign tanh mish silu erf exp softmax _softmax log_softmax sqrt".split()
)


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """The row of a node.

    Attributes:
        op: The row.
        parameters: What the row needs to know.
        reads: The nodes whose values affines move to, in the order of the row.
    """

    op: Op
    parameters: Parameters | None
    reads: tuple[fx.Node, ...]


def lift_move(view: View) -> Move | None:
    """Says which row a node has, None if it is opaque."""
    name = operator_name(view.node)
    if name in _BROADCASTING:
        return _broadcasting(view, name)
    if name in ("cat", "concat", "concatenate", "hstack"):
        return _concat(view, 1 if name == "hstack" else view.integer("dim", 0))
    if name in _SCATTERS:
        return _scatter(view, name)
    if name in _CHOICES and "other" in view.given:
        return _choice(view, ordered=_CHOICES[name])
    lifter = _LIFTERS.get(name)
    data = view.data
    if lifter is None or not isinstance(data, fx.Node) or view.constants.is_constant(data):
        return None
    if shape_of(fake_tensor(data)) is None or not view.targets or None in view.targets:
        return None
    lifted = lifter(view)
    return None if lifted is None else Move(*lifted, (data,))


def nonlinear(node: fx.Node) -> Stop | None:
    """The reason that nothing moves past an operator that is known not to be linear."""
    name = operator_name(node)
    if name not in _NONLINEAR:
        return None
    return Stop(StopCode.NONLINEAR, f"{name} '{node.name}' is not linear, nothing moves past it")


def type_name(node: fx.Node) -> str:
    """What an operator is called in reports; "Cast" for one that changes the element type and nothing else."""
    return "Cast" if operator_name(node) in CASTS else display_name(node)


def _broadcasting(view: View, name: str) -> Move | None:
    first, second = view.given["self"], view.given["other"]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    if any(view.constants.is_constant(read) or fake_tensor(read) is None for read in (first, second)):
        return None
    alpha = view.given.get("alpha", 1)
    if alpha not in (1, -1) or view.given.get("rounding_mode") is not None:
        return None
    sign = 1 if alpha == 1 else -1
    match name:
        case "mul":
            return Move(Op.MUL, None, (first, second))
        case "div":
            return Move(Op.DIV, None, (first, second))
        case "add":
            return Move(Op.ADD, Signs((1, sign)), (first, second))
        case "sub":
            return Move(Op.ADD, Signs((1, -sign)), (first, second))
    return Move(Op.ADD, Signs((-sign, 1)), (first, second))


def _concat(view: View, axis: int | None) -> Move | None:
    """All parts have to be computed, and of one rank: torch leaves out an empty tensor of rank 1 among others."""
    parts = view.given.get("tensors")
    if not isinstance(parts, Sequence) or axis is None:
        return None
    nodes = tuple(part for part in parts if isinstance(part, fx.Node) and not view.constants.is_constant(part))
    shapes = [shape_of(fake_tensor(node)) for node in nodes]
    ranks = {None if shape is None else len(shape) for shape in shapes}
    rank = ranks.pop() if len(ranks) == 1 else None
    if len(nodes) < len(parts) or not rank:
        return None
    return Move(Op.CONCAT, Joined(axis % rank), nodes)


def _choice(view: View, *, ordered: bool) -> Move | None:
    first, second = view.given["self"], view.given["other"]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    if any(view.constants.is_constant(read) or fake_tensor(read) is None for read in (first, second)):
        return None
    return Move(Op.CHOICE, Chosen(ordered), (first, second))


def _scatter(view: View, name: str) -> Move | None:
    """A sum at places that an index names, along one axis; zeros to add to take no shift, and need no scale."""
    base, updates, axis = view.given["self"], view.given[_SCATTERS[name]], view.axis()
    plain = view.given.get("alpha", 1) == 1 and view.given.get("include_self", True) is True
    if (
        axis is None
        or not plain
        or view.given.get("reduce", "sum") != "sum"
        or not isinstance(base, fx.Node)
        or not isinstance(updates, fx.Node)
    ):
        return None
    if view.constants.is_constant(updates) or fake_tensor(updates) is None:
        return None
    scattered = Scattered(frozenset({axis}))
    if _is_zero(base, view.constants):
        return Move(Op.SCATTER, scattered, (updates,))
    return None if view.constants.is_constant(base) else Move(Op.SCATTER, scattered, (base, updates))


def _is_zero(node: fx.Node, constants: Constants) -> bool:
    """Whether a tensor is zero everywhere; one that something else reads as well might have been written to."""
    if operator_name(node) in ("zeros", "new_zeros", "zeros_like"):
        return len(node.users) == 1
    found = constants.find(node)
    return found is not None and not found.read().any()


def _identity(_: View) -> Lifted | None:
    return Op.IDENTITY, None


def _cast(view: View) -> Lifted | None:
    before = fake_tensor(view.data) if isinstance(view.data, fx.Node) else None
    after = fake_tensor(view.node)
    same = before is not None and after is not None and before.dtype == after.dtype and dtype_of(after) != ""
    return (Op.IDENTITY, None) if same else None


def _dropout(view: View) -> Lifted | None:
    return (Op.IDENTITY, None) if view.given.get("train") is False else None


def _native_dropout(view: View) -> Lifted | None:
    return (Op.IDENTITY, None) if view.given.get("train") is False and not view.extra_is_read else None


def _relu(_: View) -> Lifted | None:
    return Op.RELU, None


def _prelu(view: View) -> Lifted | None:
    """The slopes are constant; each element keeps its own whatever it is scaled by."""
    return (Op.RELU, None) if view.constants.is_constant(view.given.get("weight")) else None


def _leaky_relu(view: View) -> Lifted | None:
    return (Op.RELU, None) if isinstance(view.given.get("negative_slope"), int | float) else None


def _rrelu(view: View) -> Lifted | None:
    return (Op.RELU, None) if view.given.get("training") is False else None


def _clamp(view: View) -> Lifted | None:
    """Clamping below at zero is relu."""
    low, high = view.given.get("min"), view.given.get("max")
    return (Op.RELU, None) if isinstance(low, int | float) and low == 0 and high is None else None


_LIFTERS: dict[str, Callable[[View], Lifted | None]] = {
    "clone": _identity,
    "contiguous": _identity,
    "detach": _identity,
    "alias": _identity,
    "lift": _identity,
    "lift_fresh": _identity,
    "lift_fresh_copy": _identity,
    "positive": _identity,
    "to": _cast,
    "_to_copy": _cast,
    "type_as": _cast,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "alpha_dropout": _dropout,
    "feature_alpha_dropout": _dropout,
    "native_dropout": _native_dropout,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "rrelu": _rrelu,
    "clamp": _clamp,
    "clamp_min": _clamp,
    **REARRANGING,
    **WINDOWS,
}
