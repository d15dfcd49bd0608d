"""What the maps and affines at the ends of routes hold then, and whether they can hold it."""

from collections.abc import Mapping

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import Folding
from bnfold.graph import AffineNode, Kind, MapNode
from bnfold.planning.destinations import grows
from bnfold.planning.plan import Direction
from bnfold.planning.route import Route, listed
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode
from bnfold.rules import Part


class Holding:
    """Tries what routes bring on the present state of a graph; it changes nothing.

    Args:
        tensors: Which values are one tensor by now.
        foldings: What the maps have absorbed.
        affines: The affines that are still there and may move.
    """

    def __init__(
        self, tensors: Tensors, foldings: Mapping[MapNode, Folding], affines: Mapping[AffineNode, Affine]
    ) -> None:
        self._tensors, self._foldings, self._affines = tensors, foldings, affines

    def absorb(self, foldings: dict[MapNode, Folding], routes: dict[Part, Route], side: Direction) -> None:
        """Lets the maps at the ends of some routes take what arrives there.

        Args:
            foldings: What the maps that were told before hold then; those of these routes are added.
            routes: The route of each part.
            side: Which way they go.
        """
        in_order = [routes[part] for part in Part if part in routes]
        for target in dict.fromkeys(target for route in in_order for target in route.maps):
            linear = self._tensors.linear(target)
            size = linear.out_channels if side is Direction.BACKWARD else linear.in_channels
            scale, shift = (routes[part].maps.get(target) if part in routes else None for part in Part)
            affine = Affine(np.ones(size) if scale is None else scale, np.zeros(size) if shift is None else shift)
            folding = foldings.get(target, self._foldings.get(target, Folding(linear)))
            foldings[target] = (
                folding.absorb_output(affine) if side is Direction.BACKWARD else folding.absorb_input(affine)
            )

    def defect(self, foldings: Mapping[MapNode, Folding], *, more_work: int) -> Stop | None:
        """Why maps cannot hold what they would, if so.

        Args:
            foldings: What each would hold.
            more_work: How many of them may need an operation that they did not have.
        """
        for target, folding in foldings.items():
            if folding.shift_is_lost():
                why = folding.linear.partial_kernel
                reason = f"{target.op_type} '{target.name}' {why}, and the shift is not zero"
                return Stop(StopCode.PADDED_SHIFT, reason)
            unfit = folding.quantised()
            if isinstance(unfit, str):
                return Stop(StopCode.QUANTIZED_WEIGHT, f"{target.op_type} '{target.name}': {unfit}")
            defect = folding.defect()
            if defect is not None:
                return Stop(StopCode.OVERFLOW, f"{target.op_type} '{target.name}': {defect}")
        more = [
            target.name
            for target, folding in foldings.items()
            if folding.adds_work() and not self._foldings.get(target, Folding(folding.linear)).adds_work()
        ]
        if len(more) > more_work:
            reason = f"{listed(iter(more), len(more))} would each need an Add, {len(more)} for one that goes"
            return Stop(StopCode.MORE_WORK, reason)
        return None

    def composed(self, backward: dict[Part, Route], forward: dict[Part, Route]) -> dict[AffineNode, Affine] | Stop:
        """The affines that stay, with what they take."""
        affines: dict[AffineNode, Affine] = {}
        for route in (*backward.values(), *forward.values()):
            for target, array in route.affines.items():
                if grows(self._affines[target], array):
                    return Stop(StopCode.VARIES, f"'{target.name}' would vary along more axes than it does")
        # The scale first: it passes a constant's Add, and what the constant takes of the shift is not scaled.
        for part in (Part.SCALE, Part.SHIFT):
            for target, array in backward[part].affines.items() if part in backward else ():
                present = affines.get(target, self._affines[target])
                if part is Part.SHIFT:
                    affines[target] = Affine(present.scale, present.shift + array)
                else:  # past the Add of a constant, the scale goes on
                    scale = present.scale if target.kind is Kind.AFFINE else present.scale * array
                    affines[target] = Affine(scale, present.shift * array)
        for target in dict.fromkeys(target for route in forward.values() for target in route.affines):
            present = self._affines[target]
            taken = [forward[part].affines.get(target) if part in forward else None for part in Part]
            scale = np.ones((1,) * present.rank) if taken[0] is None else taken[0]
            shift = np.zeros((1,) * present.rank) if taken[1] is None else taken[1]
            affines[target] = Affine(scale, shift).then(present)
        for target, affine in affines.items():
            if not affine.fits(target.inputs[0].dtype):
                return Stop(StopCode.OVERFLOW, f"composed with '{target.name}' it cannot be stored")
        return affines
