"""Which affines that stay are written anew, and with which numbers; the same for every format."""

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.rounding import Array, round_once
from bnfold.graph import AffineNode, Kind
from bnfold.planning.plan import Leftover, Plan


def stored(form: Leftover, node: AffineNode, affine: Affine) -> tuple[Array, Array] | None:
    """Scale and shift of an affine that stays, in the dtype of what it acts on.

    A spelled-out affine is not touched, unless something was composed into its constant.

    Args:
        form: The form asked for.
        node: The node that stays.
        affine: Its affine, with what was composed into it.

    Returns:
        The numbers; None if the node has to stay as it is.
    """
    spelled_out = node.kind is Kind.AFFINE
    if spelled_out and affine is node.affine:
        return None
    dtype_name = node.inputs[0].dtype
    if (form is Leftover.KEEP and not spelled_out) or not affine.fits(dtype_name):
        return None
    scale, shift = (round_once(array, np.dtype(dtype_name)) for array in (affine.scale, affine.shift))
    return scale, shift


def form_of(form: Leftover, node: AffineNode, plan: Plan) -> Leftover:
    """What an affine that stays is to be: a convolution only where it always runs."""
    return Leftover.MUL_ADD if form is Leftover.CONV and node not in plan.never_empty else form


def mul_add_parts(scale: Array, shift: Array) -> tuple[tuple[str, Array], ...]:
    """The operations that an affine takes without a convolution, with their constants: Mul, Add or both."""
    parts = [("Mul", scale)] if (scale != 1).any() or not shift.any() else []
    if shift.any():
        parts.append(("Add", shift))
    return tuple(parts)


def wants_convolution(form: Leftover, node: AffineNode) -> bool:
    """Whether it is to be a convolution, where there is one; spelled-out affines remain Mul and Add."""
    return form is Leftover.CONV and node.kind is not Kind.AFFINE
