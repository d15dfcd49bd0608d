"""Writing folded PyTorch models: staged in a private folder beside the destination, then renamed.

A module goes to a state dict, an exported program to .pt2, .onnx or a state dict. Tied weights are written under each
of their names, so that load_state_dict takes what was written.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from bnfold.errors import BnfoldError, OutputError, UnsafeModelError, UnsupportedModelError
from bnfold.extras import require
from bnfold.system.source_file import reason_of
from bnfold.system.staging import Written, private_folder, replace_file, require_not_source, require_writable
from bnfold.torch.file.pt2.archive import check_archive
from bnfold.torch.file.returned import require_none_of
from bnfold.torch.file.state_dict import read_weights

if TYPE_CHECKING:
    from bnfold.system.staging import Staged

STATE_SUFFIXES = (".safetensors", ".pt")
PROGRAM_SUFFIXES = (".pt2", ".onnx", *STATE_SUFFIXES)

_State = dict[str, object]


@dataclass(slots=True)
class StagedFile:
    """One file written beside its destination; see `bnfold.system.staging.Staged`.

    Attributes:
        path: The complete file.
        destination: Where `commit` puts it.
    """

    path: Path
    destination: Path
    _size: int
    _read_back: Callable[[Path], None]

    def commit(self) -> Written:
        """Reads back what was written, and puts it in the place of the destination.

        Raises:
            OutputError: It does not read back as written, or cannot be renamed; the destination is as it was.
        """
        try:
            self._read_back(self.path)
            size = self.path.stat().st_size
        except (OSError, BnfoldError) as error:
            raise OutputError(f"What was written for {self.destination} does not read back: {error}") from error
        if size != self._size:
            raise OutputError(
                f"What was written for {self.destination} does not read back as it was written.",
                hint="The disk may be full or failing.",
            )
        try:
            notes = replace_file(self.path, self.destination)
        except OSError as error:
            raise OutputError(
                f"{self.destination} cannot be replaced: {reason_of(error)}.",
                hint="Another program may have it open.",
            ) from error
        return Written((self.destination,), tuple(notes))


def stage_module(
    module: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    force: bool = False,  # noqa: ARG001 - like `stage_program`; no file is known here that the module was read from
    metadata: Mapping[str, str] | None = None,
) -> "AbstractContextManager[Staged]":
    """Writes the state dict of a module into a private folder beside its destination.

    Args:
        module: The module.
        path: A .safetensors or .pt file in an existing folder. A link is followed, a file replaced.
        force: Without effect.
        metadata: What goes into the header of a .safetensors file.

    Returns:
        A context manager that gives a `bnfold.system.staging.Staged`.

    Raises:
        OutputError: The destination is not fit to be written, or writing failed.
    """
    destination = Path(os.path.realpath(path))
    hint = "For .pt2 and .onnx, fold what torch.export.export makes of the module."
    require_writable(destination, STATE_SUFFIXES, "the state dict of a module", hint=hint)
    return _stage_state(dict(module.state_dict()), destination, metadata or {})


def stage_program(
    program: ExportedProgram, path: str | os.PathLike[str], source: Path | None = None, *, force: bool = False
) -> "AbstractContextManager[Staged]":
    """Writes an exported program into a private folder beside its destination.

    Args:
        program: The program.
        path: A file in an existing folder: .pt2 for the program, .onnx for what torch.onnx makes of it, .safetensors or
            .pt for its state dict. A link is followed, a file replaced.
        source: The file that it was read from, if any.
        force: Allow the destination to be `source`.

    Returns:
        A context manager that gives a `bnfold.system.staging.Staged`.

    Raises:
        OutputError: The destination is not fit to be written, or writing failed.
        UnsupportedModelError: torch.onnx cannot export the program, or torch.export cannot save it.
    """
    destination = Path(os.path.realpath(path))
    require_writable(destination, PROGRAM_SUFFIXES, "an exported program")
    if source and not force:
        require_not_source(destination, {source})
    suffix = destination.suffix.lower()
    if suffix == ".onnx":
        from bnfold.torch.file.to_onnx import stage_onnx

        return stage_onnx(program, destination, force=force)
    if suffix == ".pt2":
        return _staged(destination, lambda target: _write_program(program, target, destination), _check_program)
    return _stage_state(dict(program.state_dict), destination, {})


def _stage_state(state: _State, destination: Path, metadata: Mapping[str, str]) -> "AbstractContextManager[Staged]":
    is_safetensors = destination.suffix.lower() == ".safetensors"
    if is_safetensors:
        tensors = _separate(state, destination)
        return _staged(destination, lambda target: _write_safetensors(tensors, target, metadata), _same_as(tensors))
    return _staged(destination, lambda target: torch.save(state, target), _same_as(state))


def _separate(state: Mapping[str, object], destination: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state dict with memory of their own: the format knows no views and no ties."""
    tensors: dict[str, torch.Tensor] = {}
    storages: set[tuple[torch.device, int]] = set()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise OutputError(
                f"{name!r} is a {type(value).__name__}, which {destination.name} cannot hold.",
                hint="Give a path that ends in .pt.",
            )
        tensor = value.detach()
        storage = tensor.untyped_storage()
        place = (tensor.device, storage.data_ptr())
        is_whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        if not is_whole or (storage.nbytes() and place in storages):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        else:
            storages.add(place)
        tensors[name] = tensor
    return tensors


def _write_safetensors(tensors: dict[str, torch.Tensor], target: Path, metadata: Mapping[str, str]) -> None:
    require("safetensors", "a .safetensors file")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    mode = target.stat().st_mode
    try:
        save_file(tensors, target, metadata={"format": "pt", **metadata})
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        message = f"{target.name} cannot hold these tensors: {error}"
        raise OutputError(message, hint="Give a path that ends in .pt.") from error
    target.chmod(mode)  # safetensors makes files that only their owner can read


def _write_program(program: ExportedProgram, target: Path, destination: Path) -> None:
    require_none_of((str,), program, "a .pt2 file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, target)
    try:
        with target.open("rb") as file:
            check_archive(file, destination)
    except UnsafeModelError as error:
        message = f"this model cannot be written as a .pt2 file that is safe to read: {error}"
        raise UnsupportedModelError(
            message, hint="Fold the module, and write the state dict as .safetensors."
        ) from error


def _check_program(path: Path) -> None:
    with path.open("rb") as file:
        check_archive(file, path)


def _same_as(state: Mapping[str, object]) -> Callable[[Path], None]:
    """What requires a file to hold tensors of these names, shapes and element types."""
    expected = {name: _kind(value) for name, value in state.items() if isinstance(value, torch.Tensor)}

    def check(path: Path) -> None:
        content = read_weights(path)
        items = content.items() if isinstance(content, Mapping) else ()
        found = {name: _kind(value) for name, value in items if isinstance(value, torch.Tensor)}
        if found != expected:
            raise OutputError(f"{path} lacks tensors, or has others than were written.")

    return check


def _kind(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.dtype


@contextmanager
def _staged(
    destination: Path, write: Callable[[Path], None], read_back: Callable[[Path], None]
) -> Iterator[StagedFile]:
    with private_folder(destination.parent) as folder:
        target = folder / destination.name
        try:
            target.touch()
            write(target)
            size = target.stat().st_size
        except OSError as error:
            raise OutputError(f"{destination} cannot be written: {reason_of(error)}.") from error
        except BnfoldError:
            raise
        except Exception as error:  # the writers are other people's code, on other people's tensors
            said = " ".join(str(error).split("Exception raised from")[0].split())[:300]
            raise OutputError(f"{destination} cannot be written: {type(error).__name__}: {said}") from error
        yield StagedFile(target, destination, size, read_back)
