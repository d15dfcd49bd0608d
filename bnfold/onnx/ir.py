"""bnfold for pipelines built on onnx_ir: the fold as a pass."""

import warnings

import onnx_ir as ir

from bnfold.errors import ModelLoadError, UnsupportedModelError
from bnfold.onnx.file.ir_model import model_to_proto
from bnfold.onnx.file.load import from_proto
from bnfold.onnx.fold import FoldOptions, fold_onnx
from bnfold.planning.plan import Leftover


class FoldBatchNormPass(ir.passes.InPlacePass):
    """Folds the BatchNorms of an onnx_ir model, in place.

    The graph and the functions of the model are replaced; the model object stays the same.

    Args:
        skip: Glob patterns of the names of BNs that stay as they are.
        only: Glob patterns; if given, every BN that matches none of them stays as it is.
        leftover: What becomes of BNs that cannot be folded: "conv", "mul-add" or "keep".
        merge: Whether parallel branches that add up to one map become one.
    """

    def __init__(
        self, *, skip: tuple[str, ...] = (), only: tuple[str, ...] = (), leftover: str = "conv", merge: bool = True
    ) -> None:
        self._options = FoldOptions(tuple(skip), tuple(only), Leftover(leftover), merge)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds the model.

        A model that cannot be understood stays as it is, with a warning: others of a pipeline may know what to do.

        Args:
            model: The model; its graph is replaced.

        Returns:
            The same model, and whether anything changed.
        """
        try:
            folded = fold_onnx(from_proto(model_to_proto(model)), self._options)
        except (ModelLoadError, UnsupportedModelError) as error:
            warnings.warn(f"no BatchNorm was folded: {error}", stacklevel=2)
            return ir.passes.PassResult(model, modified=False)
        if folded.changed:
            result = ir.from_proto(folded.model.materialize())
            model.graph = result.graph
            model.functions.clear()
            model.functions.update(result.functions)
        return ir.passes.PassResult(model, modified=folded.changed)
