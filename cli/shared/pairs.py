"""The two models of `verify` and `bench`, from the words of the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import UsageError

from .compare import Verification
from .models import CodeOptions, ModelKind, kind_of
from .modules import Code, build, import_torch

if TYPE_CHECKING:
    import torch

    from bnfold.torch.file.examples import Call


@dataclass(frozen=True, slots=True, eq=False)
class ModelPair:
    """Two models that can be compared.

    Attributes:
        original: A module that was built, or the path of a file.
        folded: The same.
        call: What modules are called with; None where the original is a file.
    """

    original: "torch.nn.Module | Path"
    folded: "torch.nn.Module | Path"
    call: "Call | None"


def pair_of(original: str, folded: str, code_options: CodeOptions, inputs: Verification) -> ModelPair:
    """Finds or builds both models.

    Args:
        original: A file, or package.module:factory.
        folded: Likewise; or, where the original is a module, the state dict that `bnfold fold` wrote for it.
        code_options: Weights and arguments of the original's code.
        inputs: Shapes, data and value ranges.

    Raises:
        UsageError: An option is malformed, or does not fit the models.
        ModelLoadError: The code or the weights cannot be loaded.
        UnsafeModelError: The weights would have to be unpickled.
        UnsupportedModelError: A module is of a kind that cannot be folded.
    """
    if not kind_of(original).is_module:
        code_options.require_unused(original)
        if kind_of(folded) is ModelKind.STATE:
            raise UsageError(f"{folded} is a state dict, which can only be compared with the code that it is for")
        if ModelKind.ONNX not in (kind_of(original), kind_of(folded)):
            import_torch()
        return ModelPair(Path(original), _other(folded, code_options), None)
    code = build(original, code_options, inputs)
    if kind_of(folded) is ModelKind.STATE:
        other: torch.nn.Module | Path = _with_state(code, Path(folded), trust_pickle=code_options.trust_pickle)
    else:
        other = _other(folded, code_options)
    return ModelPair(code.module, other, code.call)


def names_of(pair: ModelPair, texts: Sequence[str]) -> dict[str, str]:
    """What B calls the inputs and outputs of A, where both are ONNX files.

    Args:
        pair: The models.
        texts: What was typed, such as "logits=output_0".

    Raises:
        UsageError: A text has another form, or names something that there is not.
        ModelLoadError: A file cannot be read.
    """
    given = {}
    for text in texts:
        name, equals, face = text.partition("=")
        if not (name and equals and face):
            raise UsageError(f"--map {text!r} is not A=B", hint="Write for example --map logits=output_0.")
        given[name] = face
    paths = [path for path in (pair.original, pair.folded) if isinstance(path, Path) and path.suffix.lower() == ".onnx"]
    if len(paths) < 2:
        if given:
            raise UsageError("--map is for two .onnx files")
        return {}
    from bnfold.onnx.file.load import load
    from bnfold.onnx.proto.renaming import match_names

    original, folded = (load(path).proto for path in paths)
    return match_names(original, folded, given)


def naming_lines(names: Mapping[str, str], texts: Sequence[str]) -> list[str]:
    """What is said of names that differ, and how they were matched."""
    typed = {text.partition("=")[0] for text in texts}
    found = [f"{name} is {face}" for name, face in names.items() if name not in typed]
    return [f"matched by position (--map A=B says otherwise): {', '.join(found)}"] if found else []


def _other(model: str, code_options: CodeOptions) -> "torch.nn.Module | Path":
    """B, where it is a file or code of its own."""
    if kind_of(model) is not ModelKind.CODE:
        return Path(model)
    from bnfold.torch.file.factory import build_module

    from .models import parse_arguments

    return build_module(model, parse_arguments(code_options.arguments))


def _with_state(code: Code, path: Path, *, trust_pickle: bool) -> "torch.nn.Module":
    """The module of a pickle, or that of A, folded where the state dict in the file says so, with that in it."""
    import glob

    import bnfold
    from bnfold.graph import Kind
    from bnfold.torch.capture.wrappers import unwrap
    from bnfold.torch.file.pickled import find_module
    from bnfold.torch.file.state_dict import load_weights, read_weights

    state = read_weights(path, trust_pickle=trust_pickle)
    pickled = find_module(state)
    if pickled is not None:
        return unwrap(pickled).eval()
    names = set(state) if isinstance(state, dict) else set()
    plan = bnfold.inspect(code.module, code.call)
    kept = [
        name
        for fold in plan.folds
        if fold.kind is Kind.BATCH_NORM
        for name in fold.nodes
        if f"{name}.running_var" in names
    ]
    module = bnfold.fold(code.module, code.call, skip=tuple(map(glob.escape, kept))).model
    load_weights(module, path, trust_pickle=trust_pickle)
    return module
