"""The ONNX front-end: load, lift, apply, save; and `FoldBatchNormPass` for pipelines built on onnx_ir."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.onnx.ir import FoldBatchNormPass

__all__ = ["FoldBatchNormPass"]


def __getattr__(name: str) -> object:
    if name == "FoldBatchNormPass":
        # onnx_ir takes half a second to import, and only this pass needs it.
        from bnfold.onnx.ir import FoldBatchNormPass  # noqa: PLC0415

        return FoldBatchNormPass
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
