"""Which files there are to fold, and where each goes; what would overwrite anything is refused before the work."""

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from bnfold.errors import ModelLoadError, OutputError, UsageError
from bnfold.files.records import Place
from bnfold.files.remote import files_below, is_url, local_path
from bnfold.model_kind import is_import_path

SUFFIXES = (".onnx", ".pt2")


def places(paths: Sequence[str], out_dir: str, *, recursive: bool, force: bool) -> list[Place]:
    """Each file that some paths name, and where its fold goes.

    Args:
        paths: Files and folders; a file keeps its name, and one of a folder its place below that folder.
        out_dir: The output folder.
        recursive: Whether there may be folders among the paths.
        force: Whether a destination may be the file that it is made of.

    Raises:
        UsageError: There is nothing to fold, two files would go to one place, or a file of them would be replaced.
        ModelLoadError: A folder cannot be read.
    """
    out_dir = _on_this_machine(out_dir)
    found = [
        Place(source, _joined(out_dir, name), name)
        for path in dict.fromkeys(map(_on_this_machine, paths))
        for source, name in _named(path, out_dir, recursive=recursive)
    ]
    unique = {_identity(place.source): place for place in reversed(found)}
    kept = [place for place in found if unique[_identity(place.source)] is place]
    if not kept:
        message = f"there is no {' or '.join(SUFFIXES)} file in {', '.join(paths) or 'what was given'}"
        raise ModelLoadError(message)
    _require_one_each(kept)
    _require_no_input(kept, force=force)
    return kept


def require_folder(out_dir: str) -> None:
    """Makes the output folder, if it is one of this machine.

    Raises:
        OutputError: It cannot be made.
    """
    if not is_url(out_dir):
        make_folder(out_dir, "the output folder")


def make_folder(folder: str | Path, what: str = "the folder") -> None:
    """Makes a folder, and those around it, if it is not there.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{what} {folder} cannot be made: {error.strerror}") from error


def _named(path: str, out_dir: str, *, recursive: bool) -> Iterator[tuple[str, str]]:
    """The files that a path names, each with its name below the output folder."""
    inside = files_below(path, SUFFIXES) if is_url(path) else _files_below(path, out_dir)
    if inside is None:
        if not is_url(path) and not os.path.exists(path) and is_import_path(path):
            message = f"{path} is code, and --out-dir is for files"
            raise UsageError(message, hint="Fold it alone, with -o.")
        yield path, PurePath(path).name
    elif not recursive:
        message = f"{path} is a folder"
        raise UsageError(message, hint="With -r (recursive=True), the models in it and in its folders are folded.")
    else:
        yield from ((_joined(path, name), name) for name in inside)


def _files_below(path: str, out_dir: str) -> list[str] | None:
    """The files of some kinds in a folder, hidden ones and the output folder apart; None for what is no folder."""
    if not os.path.isdir(path):
        return None

    def refuse(error: OSError) -> None:
        raise ModelLoadError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    found, apart = [], os.path.realpath(out_dir)
    for folder, folders, files in os.walk(path, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) != apart
        ]
        found += [
            Path(folder, name).relative_to(path).as_posix()
            for name in files
            if PurePath(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def _require_one_each(found: Iterable[Place]) -> None:
    taken: dict[str, Place] = {}
    for place in found:
        other = taken.setdefault(_identity(place.destination), place)
        if other is not place:
            message = f"{other.source} and {place.source} would both go to {place.destination}"
            raise UsageError(message, hint="Name the folder above them with -r, or fold them into two folders.")


def _require_no_input(found: Sequence[Place], *, force: bool) -> None:
    inputs = {_identity(place.source): place for place in found}
    for place in found:
        other = inputs.get(_identity(place.destination))
        if other is not None and not (force and other is place):
            message = f"the fold of {place.source} would replace {other.source}, which is to be folded"
            hint = "Give another output folder" + (", or --force to replace each file." if other is place else ".")
            raise UsageError(message, hint=hint)


def _identity(path: str) -> str:
    """What two paths of one file have in common: where it is on its disk, or will be."""
    if is_url(path):
        return path
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.path.normcase(os.path.realpath(path))
    return f"{status.st_dev}:{status.st_ino}"


def _on_this_machine(path: str) -> str:
    return (local_path(path) or path) if is_url(path) else path


def _joined(folder: str, name: str) -> str:
    return posixpath.join(folder, name) if is_url(folder) else os.path.join(folder, *name.split("/"))
