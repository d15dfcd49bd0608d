"""The original's values, seen from the regions that are compared with it: their types, and their magnitudes."""

from __future__ import annotations

from onnx import helper

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.shapes.inference import with_inferred_shapes
from bnfold.onnx.lift.types import Shape, dtype_in, element_type, shape_in, value_types
from bnfold.onnx.proto.names import is_standard
from bnfold.verification.judging.metrics import ROUNDOFF
from bnfold.verification.onnx.sites.bounds import Operand, edge_magnitude
from bnfold.verification.onnx.sites.emitter import Emitter


class Edges:
    """Values at which regions begin and end.

    Args:
        emitter: Takes the nodes that compute magnitudes.
        original: The original, without functions.

    Attributes:
        types: What is known about its values.
    """

    def __init__(self, emitter: Emitter, original: OnnxModel) -> None:
        self._emitter = emitter
        self.types = value_types(with_inferred_shapes(original).graph)
        self._constants = {tensor.name for tensor in original.proto.graph.initializer}
        for node in original.proto.graph.node:
            if is_standard(node, "Constant") or (node.input and self._constants.issuperset(filter(None, node.input))):
                self._constants.update(node.output)
        self._magnitudes: dict[str, str] = {}

    def shape(self, name: str) -> Shape | None:
        """The shape of a value of the original; None if its rank is unknown."""
        return shape_in(self.types, name)

    def data_type(self, name: str) -> int:
        """The element type of a value of the original, 0 if it is unknown."""
        dtype = dtype_in(self.types, name)
        return element_type(dtype) if dtype else 0

    def operand(self, name: str) -> Operand:
        """A value of the original, as something that a region reads."""
        data_type = self.data_type(name)
        constant = name in self._constants
        return Operand(
            name,
            lambda: self.magnitude(name, data_type, is_constant=constant),
            constant,
            shape=self.shape(name),
            data_type=data_type,
        )

    def magnitude(self, name: str, data_type: int, *, is_constant: bool) -> str:
        """The magnitude of a value of the model that is built: |value|."""
        found = self._magnitudes.get(name)
        if found is None:
            found = self._magnitudes[name] = edge_magnitude(self._emitter, name, data_type, is_constant=is_constant)
        return found


def roundoff(data_type: int) -> float:
    """The unit roundoff of an ONNX element type; 0 if it is not a floating-point type."""
    try:
        return ROUNDOFF.get(helper.tensor_dtype_to_np_dtype(data_type).name, 0.0)
    except KeyError:
        return 0.0
