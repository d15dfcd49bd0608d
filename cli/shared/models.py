"""What IN, A and B of the commands can be, told from the words alone: nothing is opened, and torch is not imported."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bnfold.errors import ModelLoadError, UsageError, perhaps
from bnfold.model_kind import is_import_path

_STATE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class ModelKind(StrEnum):
    """The kinds of models that a command line can name."""

    ONNX = "onnx"
    PROGRAM = "pt2"
    CODE = "module"
    STATE = "state"

    @property
    def is_module(self) -> bool:
        """Whether it is a module, to be called with something; that of a file is pickled, or else there is none."""
        return self in (ModelKind.CODE, ModelKind.STATE)


def kind_of(model: str) -> ModelKind:
    """Tells what a word of the command line names.

    Raises:
        ModelLoadError: It is no file, and does not have the form of an import path.
    """
    suffix = Path(model).suffix.lower()
    if suffix == ".pt2":
        return ModelKind.PROGRAM
    if suffix == ".onnx" or os.path.exists(model):
        return ModelKind.STATE if suffix in _STATE_SUFFIXES else ModelKind.ONNX
    if is_import_path(model):
        return ModelKind.CODE
    if suffix in _STATE_SUFFIXES:
        return ModelKind.STATE
    raise ModelLoadError(f"{model} is no file, and no package.module:factory.", hint=_hint(model))


def _hint(model: str) -> str:
    """What somebody may have meant."""
    path, _, name = model.partition(":")
    plain, attribute = path.removesuffix(".py").replace("/", ".").strip("."), name.partition("(")[0]
    if attribute != name:
        return f"A name goes there, not a call: {plain}:{attribute}, and arguments with --kwargs."
    if is_import_path(f"{plain}:{name}"):
        return f"Perhaps {plain}:{name}?"
    near = perhaps(Path(model).name, (entry.name for entry in Path(model).parent.glob("*")))
    return near or "Give the path of an .onnx or .pt2 file, or code as in torchvision.models:resnet50."


@dataclass(frozen=True, slots=True)
class CodeOptions:
    """The options that belong to a module, as they were typed.

    Attributes:
        weights: A file of weights.
        arguments: Keyword arguments for the factory, as JSON.
        dynamic: Texts such as "image:0=batch".
        trust_pickle: Whether a file of torch.save may run code.
    """

    weights: Path | None = None
    arguments: str | None = None
    dynamic: tuple[str, ...] = ()
    trust_pickle: bool = False

    def require_unused(self, model: str) -> None:
        """Raises UsageError if one of them was given for a model that is a file."""
        given = {"--weights": self.weights, "--kwargs": self.arguments, "--dynamic": self.dynamic}
        for option, value in given.items():
            if value:
                raise UsageError(f"{option} is for a package.module:factory, which {model} is not")


def parse_dynamic(texts: tuple[str, ...]) -> dict[str | None, dict[int, str]]:
    """Reads texts such as "image:0=batch,2=height": for each input its dynamic axes and their names.

    Without a name they are those of the next input, under None.

    Raises:
        UsageError: A text has another form.
    """
    dynamic: dict[str | None, dict[int, str]] = {}
    for text in texts:
        name, _, axes = text.strip().rpartition(":")
        for item in axes.split(","):
            axis, equals, size = item.partition("=")
            if not (equals and axis.strip().lstrip("-").isdigit() and size.strip().isidentifier()):
                raise UsageError(
                    f"--dynamic {text!r} is not NAME:AXIS=SIZE", hint="Write for example --dynamic image:0=batch."
                )
            dynamic.setdefault(name or None, {})[int(axis)] = size.strip()
    return dynamic


def parse_arguments(text: str | None) -> Mapping[str, object]:
    """Reads the keyword arguments of a factory.

    Raises:
        UsageError: The text is no JSON object.
    """
    import json

    try:
        arguments = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--kwargs is not JSON: {error}", hint="Write for example --kwargs '{\"width\": 64}'."
        ) from None
    if not isinstance(arguments, dict):
        raise UsageError("--kwargs is not a JSON object", hint="Write for example --kwargs '{\"width\": 64}'.")
    return arguments
