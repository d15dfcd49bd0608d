"""Weights for a module, from a file that holds nothing but tensors, or that the caller trusts."""

import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bnfold.errors import ModelLoadError, UnsafeModelError, UnsupportedModelError
from bnfold.extras import require
from bnfold.system.source_file import SourceFile
from bnfold.torch.fx.tensors import named_tensors

_NESTS = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params"),
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema"),
)
"""Where checkpoints keep the weights, best first: an average of them is taken only where nothing else fits."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
_LONGEST_PREFIX = 64
_COMPILED = "_orig_mod."
_NAMES_SHOWN = 3
_COUNTER = ".num_batches_tracked"
_PICKLE_HINT = (
    "If you trust where it comes from, ask for --trust-pickle (trust_pickle=True); otherwise get a .safetensors file,"
    " or save its state_dict()."
)


_Wanted = Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]
"""The tensors of a module by name: their shapes, and all names that each goes by."""


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Where in its file the weights of a module were found.

    Attributes:
        path: The file.
        nest: The keys that lead to the weights; () where they are the file itself.
        prefix: What was taken off the front of every name; "" for nothing.
    """

    path: Path
    nest: tuple[str, ...]
    prefix: str

    def __str__(self) -> str:
        """Such as `weights.pt under 'state_dict' without the prefix 'module.'`."""
        where = f" under {'.'.join(self.nest)!r}" if self.nest else ""
        without = f" without the prefix {self.prefix!r}" if self.prefix else ""
        return f"{self.path}{where}{without}"


def load_weights(module: torch.nn.Module, path: str | os.PathLike[str], *, trust_pickle: bool = False) -> LoadedWeights:
    """Put the weights of a file into a module, all of them and into every parameter.

    Checkpoints that nest the weights (state_dict, model, ema, ...) or prefix their names (module., _orig_mod., model.)
    are understood where that makes the names fit.

    Args:
        module: Changed in place.
        path: A .safetensors file, or a file of torch.save.
        trust_pickle: Unpickle whatever a file of torch.save holds, which runs code from it if it says so.

    Raises:
        ModelLoadError: The file is missing or damaged, or names or shapes do not fit; the module is then as it was.
        UnsafeModelError: The file would have to be unpickled.
        UnsupportedModelError: It is a TorchScript archive.
    """
    absolute = Path(os.path.abspath(path))
    content = read_weights(absolute, trust_pickle=trust_pickle)
    candidates = list(_candidates(content))
    if not candidates:
        kinds = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ModelLoadError(f"{absolute} holds no state dict, but {kinds[:200] or 'nothing'}.")
    wanted = _shapes(module)
    best = min(candidates, key=lambda candidate: candidate.misfits(wanted, module))  # the first of the best
    if best.misfits(wanted, module):
        raise _misfit(best, module, absolute)
    is_meta = any(tensor.is_meta for tensor in module.state_dict().values() if isinstance(tensor, torch.Tensor))
    try:
        module.load_state_dict(best.tensors, strict=False, assign=is_meta)
    except RuntimeError as error:
        raise ModelLoadError(f"{absolute} does not fit: {' '.join(str(error).split())[:300]}") from error
    return LoadedWeights(absolute, best.nest, best.prefix)


def read_weights(path: Path, *, trust_pickle: bool = False) -> object:
    """What a file of weights holds; see `load_weights` for the errors.

    Tensors are mapped into memory where the format allows it.
    """
    file = SourceFile.at(path)
    if file.size == 0:
        raise ModelLoadError(f"{path} is empty.")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path, trust_pickle=trust_pickle)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    require("safetensors", "a .safetensors file")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, "safetensors", error) from error


def _read_torch(path: Path, *, trust_pickle: bool) -> object:
    is_zip = zipfile.is_zipfile(path)
    if is_zip and _is_torchscript(path):
        raise UnsupportedModelError(
            f"{path} is a TorchScript archive.",
            hint="Give the state_dict() of the model that it was made from, and the code of that model as the factory.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: object = torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if not trust_pickle and (is_zip or "global" in str(error).lower()):
            raise UnsafeModelError(
                f"{path} holds more than tensors{_asked_for(error)}, and would run code when loaded.", hint=_PICKLE_HINT
            ) from error
        raise _damaged(path, "torch.save", error) from error
    except (ImportError, AttributeError) as error:
        raise ModelLoadError(
            f"{path} needs code that cannot be imported: {' '.join(str(error).split())[:200]}.",
            hint="It is looked for in the current folder, and where Python is installed.",
        ) from error
    except Exception as error:  # a pickle can make the reader raise anything
        raise _damaged(path, "torch.save", error) from error
    return content


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return False  # torch will say what is wrong with it


def _asked_for(error: Exception) -> str:
    """The class that a pickle asked for, in words."""
    _, found, rest = str(error).partition("GLOBAL ")
    name = rest.split()[0] if found and rest.split() else ""
    return f" ({name})" if name else ""


def _damaged(path: Path, kind: str, error: Exception) -> ModelLoadError:
    said = " ".join(str(error).split(". ")[0].split())[:200]
    says_something = " " in said and not said.startswith("Weights only load failed")
    return ModelLoadError(
        f"{path} cannot be read as a file of {kind}{f': {said}' if says_something else ''}.",
        hint="It may be truncated, damaged or of another format.",
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One way to read a checkpoint."""

    tensors: Mapping[str, torch.Tensor]
    nest: tuple[str, ...]
    prefix: str

    def misfits(self, wanted: _Wanted, module: torch.nn.Module) -> int:
        """How many names, shapes or element types do not fit."""
        findings = (self.missing(wanted), self.unexpected(wanted), self.misshapen(wanted), self.mistyped(module))
        return sum(map(len, findings))

    def missing(self, wanted: _Wanted) -> list[str]:
        """Names that the module has and the checkpoint lacks; one name of tied weights is enough."""
        return [
            name
            for name, (_, ties) in wanted.items()
            if not name.endswith(_COUNTER) and not any(tie in self.tensors for tie in ties)
        ]

    def unexpected(self, wanted: _Wanted) -> list[str]:
        return [name for name in self.tensors if name not in wanted]

    def misshapen(self, wanted: _Wanted) -> list[str]:
        return [
            f"{name} is {_shape(tensor.shape)}, not {_shape(wanted[name][0])}"
            for name, tensor in self.tensors.items()
            if name in wanted and tuple(tensor.shape) != wanted[name][0]
        ]

    def mistyped(self, module: torch.nn.Module) -> list[str]:
        """Tensors that would lose what they mean: integers where floating-point numbers belong, or the reverse."""
        wanted = module.state_dict()
        return [
            f"{name} is {_kind(tensor)}, not {_kind(wanted[name])}"
            for name, tensor in self.tensors.items()
            if name in wanted and tensor.is_floating_point() is not wanted[name].is_floating_point()
        ]


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shapes(module: torch.nn.Module) -> _Wanted:
    """For each tensor of the state dict its shape, and all names that it goes by."""
    tensors = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor)}
    named = [*named_tensors(module)]
    names: dict[int, list[str]] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
    ties = {name: tuple(names[id(tensor)]) for name, tensor in named}
    return {name: (tuple(tensor.shape), ties.get(name, (name,))) for name, tensor in tensors.items()}


def _candidates(content: object) -> Iterator[_Candidate]:
    """The ways to read what a file holds, simplest first."""
    for nest, mapping in _mappings(content, ()):
        tensors = {name: value for name, value in mapping.items() if isinstance(value, torch.Tensor)}
        if any(value.is_nested for value in tensors.values()):
            continue  # no parameter is one, and they have no shape to compare
        if not tensors:
            continue
        yield _Candidate(tensors, nest, "")
        if any(_COMPILED in name for name in tensors):
            yield _Candidate({name.replace(_COMPILED, ""): value for name, value in tensors.items()}, nest, _COMPILED)
        yield from _without_prefixes(tensors, nest, "")


def _without_prefixes(tensors: Mapping[str, torch.Tensor], nest: tuple[str, ...], taken: str) -> Iterator[_Candidate]:
    for prefix in _PREFIXES if len(taken) < _LONGEST_PREFIX else ():
        if all(name.startswith(prefix) for name in tensors):
            shorter = {name.removeprefix(prefix): value for name, value in tensors.items()}
            yield _Candidate(shorter, nest, taken + prefix)
            yield from _without_prefixes(shorter, nest, taken + prefix)


def _mappings(content: object, nest: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, object]]]:
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    yield nest, content
    if len(nest) < 2:
        for key in _NESTS:
            if key in content:
                yield from _mappings(content[key], (*nest, key))


def _misfit(best: _Candidate, module: torch.nn.Module, path: Path) -> ModelLoadError:
    wanted = _shapes(module)
    findings = [
        _listed("missing", best.missing(wanted)),
        _listed("unexpected", best.unexpected(wanted)),
        _listed("of another shape", best.misshapen(wanted)),
        _listed("of another type", best.mistyped(module)),
    ]
    return ModelLoadError(
        f"{path} does not fit {type(module).__name__}: {'; '.join(filter(None, findings))}.",
        hint="Check the arguments of the factory (--kwargs), and that the weights are those of this model.",
    )


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_NAMES_SHOWN])}{more})"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
