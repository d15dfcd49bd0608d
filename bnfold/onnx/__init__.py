"""The ONNX front-end: a model comes in, and a folded model with its plan goes out; and the pass for onnx_ir.

It must not know torch, and decides nothing about where an affine goes.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.onnx.ir import FoldBatchNormPass

__all__ = ["FoldBatchNormPass"]


def __getattr__(name: str) -> object:
    if name == "FoldBatchNormPass":
        # onnx_ir takes half a second to import, and only this pass needs it.
        from bnfold.onnx.ir import FoldBatchNormPass

        return FoldBatchNormPass
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
