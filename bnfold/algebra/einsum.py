"""Sums of products in index notation, with one constant operand: which of its letters are channels.

    y[…o…] = Σ_i x[…i…] · W[i, o]          y[…b…o…] = Σ_i x[…b…i…] · W[b, i, o]

A scale along a letter that W shares with the result multiplies W along it, and so does one along a letter that W shares
with x. A shift of x along a letter i that is added up is Σ_i t_i · W[i, …], one vector along o only where W has no
other letter that comes out. All other letters of x come out again, perhaps in another order, or are added up.

One letter is the channel of the output and one that of the input: of those that can be, the one which is second, where
normalisations have their channels, else the last of W and the result alone, or of W and x alone. A size of 1 is
broadcast; no letter along which W has size 1 is a channel, and none is added up, for x may have more there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from bnfold.algebra.linear_map import LinearMap
from bnfold.algebra.tensor import Tensor

_ELLIPSIS = "."
_ADDS_UP_MORE = "adds up along axes that its weight does not have"
_HAS_MORE = "has weights of its own for each index of further axes"


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
    if len(terms.weight) != len(weight.shape) or _ELLIPSIS in terms.weight:
        return f"has a constant with {len(weight.shape)} axes"
    if any(len(set(term)) < len(term) for term in (terms.data, terms.weight, terms.result)):
        return "has an operand with a diagonal"
    if not set(terms.result) <= {*terms.data, *terms.weight}:
        return "is not well formed"
    if any(size == 1 and letter not in terms.result for letter, size in zip(terms.weight, weight.shape, strict=True)):
        return "may broadcast its constant"
    extra = 0
    if _ELLIPSIS in terms.data:
        if data_rank is None or _ELLIPSIS not in terms.result or data_rank < len(terms.data) - 1:
            return "has an ellipsis that is not known or not kept"
        extra = data_rank - len(terms.data)
    elif data_rank not in (None, len(terms.data)):
        return "is not well formed"
    return _map(terms, weight, extra)


def batched_product_map(weight: Tensor, data_rank: int, *, on_left: bool) -> LinearMap | str:
    """Reads a product with a constant batch of matrices, as numpy.matmul defines it.

    Args:
        weight: The matrices, of rank 3 or more.
        data_rank: How many axes the other operand has.
        on_left: Whether the constant is the first operand.

    Returns:
        The map, without a bias; or a clause saying why it is none.
    """
    ranks = data_rank, len(weight.shape)
    data, constant, result = (ascii_uppercase[-(rank - 2) :] if rank > 2 else "" for rank in (*ranks, max(ranks)))
    free = "n" if data_rank > 1 else ""
    if on_left:
        return _map(_Terms(f"{data}i{free}", f"{constant}oi", f"{result}o{free}"), weight, 0)
    return _map(_Terms(f"{data}{free}i", f"{constant}io", f"{result}{free}o"), weight, 0)


def _map(terms: _Terms, weight: Tensor, extra: int) -> LinearMap | str:
    """The map of terms without diagonals, where an ellipsis stands for `extra` axes more than one."""
    sizes = dict(zip(terms.weight, weight.shape, strict=True))
    given = [letter for letter in terms.weight if letter in terms.result]
    wide = [letter for letter in given if sizes[letter] > 1]
    outer = _channel(terms.result, wide or [letter for letter in given if letter not in terms.data], terms.data)
    taken = [letter for letter in terms.weight if letter in terms.data and letter != outer]
    inner = _channel(terms.data, [one for one in taken if sizes[one] > 1 or one not in terms.result], terms.result)
    if outer is None or inner is None:
        return "does not lead from one axis of its constant to another"
    others = [letter for letter in terms.weight if letter not in (outer, inner)]
    order = tuple(terms.weight.index(letter) for letter in (outer, inner, *others))
    partial = _HAS_MORE if any(letter in terms.result and sizes[letter] > 1 for letter in (inner, *others)) else ""
    if set(terms.data) - {*terms.weight, *terms.result}:
        partial = _ADDS_UP_MORE
    in_order = len(order) == 2
    return LinearMap(
        weight=weight,
        out_first=not in_order or order == (0, 1),
        output_axis=_axis(terms.result, outer, extra),
        input_axis=_axis(terms.data, inner, extra),
        bias_is_extra=True,
        keeps_axes=terms.data.replace(inner, outer) == terms.result,
        order=() if in_order else order,
        broadcasts_input=True,
        partial_kernel=partial,
    )


def _channel(term: str, letters: Sequence[str], other: str) -> str | None:
    """The letter of the channels of one side.

    Args:
        term: Its letters.
        letters: Those that the constant has as well.
        other: The letters of the other side.
    """
    second = term[1:2]
    if second in letters and _ELLIPSIS not in term:
        return second
    return next((letter for letter in reversed(letters) if letter not in other), next(iter(letters), None))


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
