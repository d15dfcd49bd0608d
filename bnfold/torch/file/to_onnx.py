"""An exported program as an ONNX file, by torch.onnx; what only the graph can express is then folded there.

torch.onnx is asked not to optimise: its optimiser folds BatchNorm by itself, in float32 and whether or not the caller
wants that one folded. Constant expressions are evaluated afterwards, which is exact.
"""

import ast
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold.errors import OutputError, UnsupportedModelError
from bnfold.extras import require
from bnfold.system.source_file import reason_of
from bnfold.system.staging import private_folder
from bnfold.torch.capture.export import quiet
from bnfold.torch.file.examples import DynamicAxes
from bnfold.torch.file.returned import require_none_of

if TYPE_CHECKING:
    import onnx_ir

    from bnfold.system.staging import Staged

_SEPARATE_FROM_NBYTES = 1_500_000_000  # a protobuf ends at 2 GiB
_REMOVED_METADATA = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


def export_onnx(program: ExportedProgram, path: Path, *, dynamic: DynamicAxes | None = None) -> None:
    """Writes a program as an ONNX file.

    Inputs are called as in the program, outputs by the keys of the dict or class that the model returns, or "output".

    Args:
        program: The program; it is not changed.
        path: Where the file goes. Large weights go to `<name>.data` beside it.
        dynamic: Names for dynamic axes.

    Raises:
        UnsupportedModelError: torch.onnx has no translation for something in it, or it returns more than tensors.
    """
    require_none_of((bool, int, float, str), program, "an ONNX file")
    require("onnxscript", "the export to ONNX")
    names = output_names(program)
    try:
        with quiet(), _exporter_quiet():
            exported = torch.onnx.export(
                program, (), dynamo=True, optimize=False, verbose=False, verify=False, output_names=names or None
            )
            assert exported is not None  # with dynamo=True and no file, the program is returned
            _tidy(exported.model)
            _name_axes(exported.model, dynamic or {})
            weights = (value.const_value for value in exported.model.graph.initializers.values())
            nbytes = sum(weight.nbytes for weight in weights if weight is not None)
            exported.save(os.fspath(path), external_data=nbytes > _SEPARATE_FROM_NBYTES)
    except Exception as error:  # the exporter raises what its many translations raise
        if isinstance(error, OSError):
            raise
        raise UnsupportedModelError(
            f"torch.onnx cannot export the model: {_said(error)}", hint="Write a .pt2 file instead."
        ) from error


def output_names(program: ExportedProgram) -> list[str]:
    """Names for the outputs of a program, by what its model returns; [] where the program's own have to do."""
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != len(program.graph_signature.user_outputs):
        return []
    paths = [path for path, _ in pytree.tree_flatten_with_path(pytree.tree_unflatten([0] * spec.num_leaves, spec))[0]]
    names = ["_".join(map(_key, path)) for path in paths]
    if all(name.isdigit() for name in names):
        names = ["output"] if len(names) == 1 else [f"output_{name}" for name in names]
    elif names == [""]:
        names = ["output"]
    taken = set(program.graph_signature.user_inputs)
    names = [f"{name}_output" if name in taken else name for name in names]
    return names if len(set(names)) == len(names) and all(names) else []


@contextmanager
def stage_onnx(program: ExportedProgram, destination: Path, *, force: bool = False) -> "Iterator[Staged]":
    """Writes a program as an ONNX file beside its destination; see `bnfold.onnx.file.save.stage`."""
    from bnfold.onnx.file.load import load
    from bnfold.onnx.file.save import stage

    with exported_file(program, destination.parent) as path, stage(load(path), destination, force=force) as staged:
        yield staged


@contextmanager
def exported_file(
    program: ExportedProgram, beside: Path | None = None, *, dynamic: DynamicAxes | None = None
) -> Iterator[Path]:
    """Writes a program as an ONNX file into a temporary folder, which goes when the block is left.

    Args:
        program: The program.
        beside: The folder in which the temporary one is made; None for the system's.
        dynamic: Names for dynamic axes.

    Raises:
        OutputError: The folder cannot be written to.
        UnsupportedModelError: torch.onnx has no translation for something in it.
    """
    with private_folder(beside or Path(os.path.realpath(tempfile.gettempdir()))) as folder:
        path = folder / "exported.onnx"
        try:
            export_onnx(program, path, dynamic=dynamic)
        except OSError as error:
            raise OutputError(f"{folder} cannot be written to: {reason_of(error)}.") from error
        yield path


def _tidy(model: "onnx_ir.Model") -> None:
    """Evaluates constant expressions, and takes out what names the exporting machine's files."""
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    taken = {node.name for node in model.graph.all_nodes()}
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        name = ".".join(scopes[1:-1]) if node.op_type == "BatchNormalization" else ""
        if name and name not in taken:
            node.name = name  # the path of its module, by which reports speak of it
            taken.add(name)
        for key in _REMOVED_METADATA:
            node.metadata_props.pop(key, None)


def _name_axes(model: "onnx_ir.Model", dynamic: DynamicAxes) -> None:
    """Calls symbolic sizes as asked, wherever they occur."""
    import onnx_ir

    renamed: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in dynamic.get(value.name or "", {}).items():
            size = value.shape[axis] if value.shape is not None and axis < len(value.shape) else None
            if isinstance(size, onnx_ir.SymbolicDim) and size.value is not None:
                renamed[str(size.value)] = name
    if not renamed:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, renamed)) + r")\b")
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in values:
        if value.shape is not None and not value.shape.frozen:
            for axis, size in enumerate(value.shape):
                if isinstance(size, onnx_ir.SymbolicDim) and size.value is not None:
                    value.shape[axis] = pattern.sub(lambda found: renamed[found.group()], str(size.value))


@contextmanager
def _exporter_quiet() -> Iterator[None]:
    """Keeps the exporter, whose loggers come into being as it is imported, from telling what it did not find."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _said(error: BaseException) -> str:
    """The innermost cause in one line: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).partition("While executing")[0].split())[:300]
    return f"{type(error).__name__}: {text}"


def _key(key: pytree.KeyEntry) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
