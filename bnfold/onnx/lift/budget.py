"""How much of a model's constant expressions is evaluated: in proportion to the model, so that none can ask for more.

Memory: what is kept, and each single result, stays within twice the model and a little. Time: what all evaluations go
through, results that are computed again included, stays within a multiple of that. An honest expression transposes,
casts or scales a weight that is in the file, and takes a few percent of either.
"""

_FREE_NBYTES = 64 << 20
_PER_MODEL = 2
_PASSES = 32
_EACH_NBYTES = 1 << 16  # what an evaluation costs that goes through nothing


class Budget:
    """What is left to be evaluated and to be kept.

    Args:
        model_nbytes: The size of the model with its data.

    Attributes:
        most_nbytes: The largest size of a result.
    """

    def __init__(self, model_nbytes: int) -> None:
        self.most_nbytes = _FREE_NBYTES + _PER_MODEL * model_nbytes
        self._to_keep = self.most_nbytes
        self._to_spend = _PASSES * self.most_nbytes

    def spend(self, nbytes: int) -> bool:
        """Whether one more evaluation is within the budget, which goes through so many bytes."""
        self._to_spend -= nbytes + _EACH_NBYTES
        return self._to_spend >= 0

    def keep(self, nbytes: int) -> bool:
        """Whether one more result of so many bytes may stay in memory."""
        self._to_keep -= nbytes
        return self._to_keep >= 0
