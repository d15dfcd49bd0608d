"""Sums of products in index notation, with a constant matrix for one operand: which of its letters are channels.

    y[…o…] = Σ_i x[…i…] · W[i, o]

The letter that W shares with the result alone is the channel of the output, the one that it shares with x alone that of
the input. All other letters of x come out again, perhaps in another order, or are added up.
"""

from dataclasses import dataclass, replace

from bnfold.algebra.linear_map import LinearMap
from bnfold.algebra.tensor import Tensor

_ELLIPSIS = "."
_ADDS_UP_MORE = "adds up along axes that its weight does not have"


@dataclass(frozen=True, slots=True)
class _Terms:
    """The letters of the operand that is computed, of the constant, and of the result; a dot for an ellipsis."""

    data: str
    weight: str
    result: str


def einsum_map(equation: str, weight_at: int, weight: Tensor, data_rank: int | None) -> LinearMap | str:
    """Reads a sum of products.

    Args:
        equation: With two operands, such as `nd,df->nf`.
        weight_at: Which of them is constant.
        weight: Its values.
        data_rank: How many axes the other has, None if that is not known.

    Returns:
        The map, without a bias; or a clause saying why it is none.
    """
    terms = _terms(equation, weight_at)
    if terms is None:
        return "is not a product of one value with one constant"
    if len(weight.shape) != 2 or len(terms.weight) != 2 or _ELLIPSIS in terms.weight:
        return f"has a constant with {len(weight.shape)} axes, not 2"
    if any(len(set(term)) < len(term) for term in (terms.data, terms.weight, terms.result)):
        return "has an operand with a diagonal"
    inner = [letter for letter in terms.weight if letter in terms.data and letter not in terms.result]
    outer = [letter for letter in terms.weight if letter in terms.result and letter not in terms.data]
    if len(inner) != 1 or len(outer) != 1:
        return "does not lead from one axis of its constant to the other"
    if not set(terms.result) - {*outer} <= set(terms.data):
        return "is not well formed"
    if weight.shape[terms.weight.index(inner[0])] == 1:
        return "may broadcast its constant"
    extra = 0
    if _ELLIPSIS in terms.data:
        if data_rank is None or _ELLIPSIS not in terms.result or data_rank < len(terms.data) - 1:
            return "has an ellipsis that is not known or not kept"
        extra = data_rank - len(terms.data)
    elif data_rank not in (None, len(terms.data)):
        return "is not well formed"
    linear = LinearMap(
        weight=weight,
        out_first=terms.weight[0] == outer[0],
        output_axis=_axis(terms.result, outer[0], extra),
        input_axis=_axis(terms.data, inner[0], extra),
        bias_is_extra=True,
        keeps_axes=terms.data.replace(inner[0], outer[0]) == terms.result,
    )
    adds_up_more = len(terms.data) > len(terms.result)
    return replace(linear, partial_kernel=_ADDS_UP_MORE if adds_up_more else "")


def _axis(term: str, letter: str, extra: int) -> int:
    """The axis of a letter, counted from the right, where an ellipsis stands for `extra` axes more than one."""
    position = term.index(letter)
    behind = len(term) - 1 - position
    return -1 - behind - (extra if _ELLIPSIS in term[position:] else 0)


def _terms(equation: str, weight_at: int) -> _Terms | None:
    operands, arrow, result = equation.replace(" ", "").replace("...", _ELLIPSIS).partition("->")
    parts = operands.split(",")
    if len(parts) != 2:
        return None
    if not arrow:
        once = sorted(letter for letter in {*operands} - {",", _ELLIPSIS} if operands.count(letter) == 1)
        result = (_ELLIPSIS if _ELLIPSIS in operands else "") + "".join(once)
    letters = {*operands, *result} - {",", _ELLIPSIS}
    if not all(letter.isascii() and letter.isalpha() for letter in letters):
        return None
    return _Terms(parts[1 - weight_at], parts[weight_at], result)
