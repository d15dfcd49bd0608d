"""Loading a .pt2 file: looked through first, so that reading a model runs no code from it."""

import io
import os
from pathlib import Path

import torch

from bnfold.errors import ModelLoadError, UnsupportedModelError
from bnfold.system.source_file import SourceFile, reason_of
from bnfold.torch.capture.export import quiet
from bnfold.torch.file.pt2.archive import check_archive


def load_program(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    """Load what torch.export.save wrote.

    Args:
        path: A .pt2 file.

    Raises:
        ModelLoadError: There is no such file, or it is not a complete archive of torch.export.
        UnsafeModelError: Loading it would unpickle objects or run code.
        UnsupportedModelError: It is of an older format, holds other models, or needs unknown operators.
    """
    absolute = Path(os.path.abspath(path))
    if absolute.suffix.lower() != ".pt2":
        raise ModelLoadError(f"{absolute} does not end in .pt2.", hint="Exported programs are read from .pt2 files.")
    file = SourceFile.at(absolute)
    if file.size == 0:
        raise ModelLoadError(f"{absolute} is empty.")
    try:
        handle = absolute.open("rb")
    except OSError as error:
        raise ModelLoadError(f"{absolute} cannot be read: {reason_of(error)}.") from error
    with handle:  # one handle for both, so that what was looked through is what is loaded
        check_archive(handle, absolute)
        return _load(handle, absolute)


def _load(handle: io.BufferedReader, path: Path) -> torch.export.ExportedProgram:
    # torch.export.load would log a traceback, and go on to try an older format that is pickled.
    from torch.export.pt2_archive._package import load_pt2

    try:
        with quiet():
            programs = load_pt2(handle).exported_programs
    except Exception as error:  # whatever torch trips over, it is the file that did not fit
        said = " ".join(str(error).split())[:300]
        raise ModelLoadError(
            f"torch {torch.__version__} cannot load {path}: {type(error).__name__}: {said}",
            hint="It may be damaged, or written by another version of torch.",
        ) from error
    if "model" not in programs:
        raise UnsupportedModelError(f"{path} holds no exported program.")
    program: torch.export.ExportedProgram = programs["model"]
    _require_stored_as_read(program, path)
    return program


def _require_stored_as_read(program: torch.export.ExportedProgram, path: Path) -> None:
    """Requires that each stored tensor has the shape and element type that the graph reads.

    Raises:
        ModelLoadError: One has another.
    """
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        stored = program.state_dict.get(spec.target or "", program.constants.get(spec.target or ""))
        read = nodes.get(spec.arg.name)
        if not isinstance(stored, torch.Tensor) or not isinstance(read, torch.Tensor):
            continue
        if stored.dtype != read.dtype or tuple(stored.shape) != tuple(read.shape):
            message = f"{path} stores {spec.target!r} as {_of(stored)}, and its program reads {_of(read)}."
            raise ModelLoadError(message, hint="It may be damaged; export the program again.")


def _of(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of {'x'.join(map(str, tensor.shape)) or 'no axes'}"
