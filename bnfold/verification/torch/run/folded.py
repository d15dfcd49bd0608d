"""The folded model, whatever it is: PyTorch, or an ONNX file that was made of the PyTorch original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.errors import UsageError
from bnfold.input_spec import Array
from bnfold.verification.judging.comparing import Results
from bnfold.verification.runtime.devices import Device
from bnfold.verification.runtime.sessions import Session
from bnfold.verification.runtime.source import Source
from bnfold.verification.torch.run.flatten import to_array
from bnfold.verification.torch.run.sample import Sample


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFolded:
    """An ONNX model that stands for a PyTorch one.

    Attributes:
        source: The ONNX model.
        device: Where onnxruntime runs it.
    """

    source: Source
    device: Device

    def run(self, samples: Sequence[Sample], reference: Results, *, as_deployed: bool = False) -> list[Results]:
        """Outputs for each sample, under the names of the original's.

        Args:
            samples: What the original was called with.
            reference: Outputs of the original.
            as_deployed: With the runtime's own optimisations, and TF32.

        Raises:
            DeviceError: It does not run on the device.
            ModelLoadError: It cannot be read.
            RuntimeFailure: onnxruntime refuses it.
            UsageError: It takes other inputs.
        """
        session = self.source.session(self.device, as_deployed=as_deployed)
        found = [session.run(_feeds(session, sample)) for sample in samples]
        return [_renamed(session, results, reference) for results in found]


def _feeds(session: Session, sample: Sample) -> dict[str, Array]:
    """The inputs by the names that the ONNX model has for them: the same names, or the same order.

    Raises:
        UsageError: It has more inputs, or others.
    """
    tensors = sample.tensors()
    names = session.inputs
    if set(names) <= set(tensors):
        return {name: to_array(tensors[name]) for name in names}
    if len(names) != len(tensors):
        raise UsageError(
            f"the ONNX model has the inputs {', '.join(names)}, and the original {', '.join(tensors)}",
            hint="Export it with the inputs that the original is called with.",
        )
    return {name: to_array(tensor) for name, tensor in zip(names, tensors.values(), strict=True)}


def _renamed(session: Session, results: Mapping[str, object], reference: Results) -> Results:
    """ONNX outputs have no structure: they are the original's tensors in order, under names of their own."""
    if set(session.outputs) == set(reference):
        return results
    expected = [name for name, value in reference.items() if isinstance(value, np.ndarray)]
    names = [*expected, *session.outputs[len(expected) :]]
    return dict(zip(names, results.values(), strict=False))
