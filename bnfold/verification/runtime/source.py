"""A model to be run: a file that the runtime opens itself, or a model in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import onnx

from bnfold.errors import UsageError
from bnfold.input_spec import Array
from bnfold.model_kind import is_ir_model
from bnfold.onnx.file.load import OnnxModel, from_proto, load
from bnfold.onnx.proto.normalise import drop_nameless_statistics
from bnfold.onnx.proto.renaming import Names, rename_interface
from bnfold.system.memory import memory_left
from bnfold.system.source_file import SourceFile
from bnfold.verification.runtime.devices import Device
from bnfold.verification.runtime.initializers import (
    drop_unused_initializers,
    embed_attributes,
    referred_initializers,
)
from bnfold.verification.runtime.parts import PART_NBYTES, InParts
from bnfold.verification.runtime.sessions import Session

if TYPE_CHECKING:
    import onnx_ir

ModelLike: TypeAlias = Union[str, os.PathLike[str], onnx.ModelProto, "onnx_ir.Model"]


@dataclass(frozen=True, slots=True)
class Source:
    """One of the two models.

    Attributes:
        label: What a message calls it: the path, or "the original model", "the folded model".
        path: The file, absolute; None for a model in memory.
        proto: The model in memory; None for a file.
        names: For inputs and outputs of the original, what this model calls them; they are then called as there.
        by_path: Whether the runtime opens a file itself; it gets what is read out of it otherwise.
    """

    label: str
    path: Path | None
    proto: onnx.ModelProto | None
    names: Names = field(default_factory=dict)
    by_path: bool = True

    @staticmethod
    def of(model: ModelLike, role: str) -> Source:
        """Wrap what the caller gave.

        Args:
            model: A path, an onnx.ModelProto or an onnx_ir.Model.
            role: "original" or "folded".

        Raises:
            ModelLoadError: There is no such file.
            UsageError: `model` is something else.
        """
        if isinstance(model, str | os.PathLike):
            path = Path(os.path.abspath(model))
            SourceFile.at(path)
            return Source(str(path), path, None)
        label = f"the {role} model"
        if isinstance(model, onnx.ModelProto):
            return Source(label, None, model)
        if is_ir_model(model):
            from bnfold.onnx.file.ir_model import model_to_proto

            return Source(label, None, model_to_proto(model))
        raise UsageError(
            f"{label} is a {type(model).__name__}",
            hint="Give a path, an onnx.ModelProto or an onnx_ir.Model.",
        )

    def called(self, names: Names) -> Source:
        """The same model with inputs and outputs under other names; see `names`."""
        return replace(self, names=names)

    def opened(self) -> tuple[Source, OnnxModel]:
        """The same model as it can be run, and its skeleton; the runtime does not open a file that it crashes on.

        Raises:
            ModelLoadError: It cannot be read.
            UsageError: A name that it is to have is taken.
        """
        model = self.skeleton()
        return replace(self, by_path=not drop_nameless_statistics(model.proto)), model

    def skeleton(self) -> OnnxModel:
        """The model with large tensors by reference.

        Raises:
            ModelLoadError: It cannot be read.
            UsageError: A name that it is to have is taken.
        """
        model = self._own_skeleton()
        if self.names:
            rename_interface(model.proto, self.names)
        return model

    def _own_skeleton(self) -> OnnxModel:
        if self.path is not None:
            return load(self.path)
        assert self.proto is not None  # one of the two is always there
        return from_proto(self.proto)

    def runner(self, device: Device, nbytes: int) -> Session | LargeModel:
        """The model as it is, loaded on `device` as a whole where that leaves some memory, and otherwise in parts.

        Args:
            device: Where every heavy node must run.
            nbytes: The size of the model.

        Raises:
            DeviceError, ModelLoadError, RuntimeFailure: See `session`.
        """
        if nbytes + PART_NBYTES < memory_left():
            return self.session(device)
        return LargeModel(self.skeleton(), device)

    def session(self, device: Device, *, as_deployed: bool = False) -> Session:
        """The model as it is, loaded on `device`.

        Args:
            device: Where every heavy node must run.
            as_deployed: With the runtime's own optimisations, and TF32.

        Raises:
            DeviceError: It does not run there.
            ModelLoadError: It cannot be read.
            RuntimeFailure: The runtime refuses it.
        """
        model, injected = self.loadable()
        return Session(model, device, injected, as_deployed=as_deployed)

    def loadable(self) -> tuple[str | bytes, dict[str, Array]]:
        """What a session loads: a path, or a serialised model, and the values of what that has by reference.

        Raises:
            ModelLoadError: It cannot be read.
        """
        if self.path is not None and self.by_path and not self.names:
            return str(self.path), {}
        # By reference again: a serialised copy would double the memory and end at 2 GiB.
        model = self.skeleton()
        make_loadable(model)
        return model.proto.SerializeToString(), injected_values(model)


class LargeModel:
    """What a Session is, for a model that memory has no room for as a whole.

    Args:
        model: The model; it is changed.
        device: Where every heavy node must run.
    """

    def __init__(self, model: OnnxModel, device: Device) -> None:
        graph = model.proto.graph
        make_loadable(model)
        self._model, self._tensors = model, {tensor.name: tensor for tensor in referred_initializers(graph)}
        nbytes = {name: model.store.nbytes(tensor) for name, tensor in self._tensors.items()}
        self._parts = InParts(model.proto, nbytes, device)
        held = {tensor.name for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in held)
        self.outputs = tuple(value.name for value in graph.output)
        self.nodes_per_provider: Mapping[str, int] = {}  # each part is looked at, and they are not counted
        self.nodes_elsewhere: tuple[str, ...] = ()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, object]:
        """See Session; what the runtime refuses, it refuses here."""
        (results,) = self._parts.run([feeds], lambda name: self._model.array(self._tensors[name]))
        return results


def make_loadable(model: OnnxModel) -> None:
    """Let onnxruntime take a skeleton, with the values of its referred initializers beside it."""
    drop_nameless_statistics(model.proto)
    drop_unused_initializers(model.proto.graph)
    embed_attributes(model)


def injected_values(model: OnnxModel) -> dict[str, Array]:
    """The values of the initializers that a skeleton has by reference."""
    return {tensor.name: model.array(tensor) for tensor in referred_initializers(model.proto.graph)}
