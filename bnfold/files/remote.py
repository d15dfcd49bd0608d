"""Files by URL, through fsspec: fetched into a folder of this machine to be folded, and sent from it when that is done.

A store has no rename that puts several files in place at once, so the model goes last: until it is there, nothing names
the new data.
"""

import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from bnfold.errors import BnfoldError, ModelLoadError, OutputError
from bnfold.extras import require

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def is_url(path: str) -> bool:
    """Whether a path is one of a store, and not of this machine."""
    return "://" in path


def local_path(url: str) -> str | None:
    """The path of what a URL says is on this machine; None for the others.

    Raises:
        ModelLoadError: No store answers to it.
    """
    store, path = _opened(url, ModelLoadError)
    protocols = [store.protocol] if isinstance(store.protocol, str) else store.protocol
    return path if "file" in protocols else None


def files_below(url: str, suffixes: tuple[str, ...]) -> list[str] | None:
    """The files of some kinds in a folder of a store and those in it, as paths relative to it; None for a file.

    Raises:
        ModelLoadError: The store cannot be read.
    """
    store, path = _opened(url, ModelLoadError)
    with _trouble(f"{url} cannot be read", ModelLoadError):
        if not store.isdir(path):
            return None
        found = [PurePosixPath(posixpath.relpath(entry, path)) for entry in store.find(path)]
        hidden = (name for name in found if not any(part.startswith(".") for part in name.parts))
        return sorted(str(name) for name in hidden if name.suffix.lower() in suffixes)


def fetch(url: str, folder: Path) -> Path:
    """Copies a file, and the data files that it names if it is an ONNX model, into a folder.

    Raises:
        ModelLoadError: It cannot be read.
    """
    from bnfold.onnx.file.data_files import names_of_data

    store, path = _opened(url, ModelLoadError)
    file = folder / posixpath.basename(path)
    with _trouble(f"{url} cannot be read", ModelLoadError):
        store.get_file(path, str(file))
        for name in names_of_data(file) if file.suffix.lower() == ".onnx" else ():
            data = posixpath.join(posixpath.dirname(path), name)
            if store.exists(data):  # one that is missing is told of where the model is read
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                store.get_file(data, str(folder / name))
    return file


def send(files: Iterable[Path], url: str) -> None:
    """Copies files, in their order, into the folder of a URL.

    Raises:
        OutputError: They cannot be written.
    """
    store, path = _opened(url, OutputError)
    folder = posixpath.dirname(path)
    with _trouble(f"{url} cannot be written", OutputError):
        store.makedirs(folder, exist_ok=True)
        for file in files:
            store.put_file(str(file), posixpath.join(folder, file.name))


def _opened(url: str, kind: type[BnfoldError]) -> "tuple[AbstractFileSystem, str]":
    require("fsspec", f"{url}, a URL,", "urls")
    import fsspec

    with _trouble(f"{url} cannot be opened", kind):
        store, path = fsspec.core.url_to_fs(url)
        return store, str(path)


@contextmanager
def _trouble(what: str, kind: type[BnfoldError]) -> Iterator[None]:
    """What a store raises, which may be anything, as an error of ours."""
    try:
        yield
    except BnfoldError:
        raise
    except Exception as error:  # stores have no common base of errors
        lines = str(error).strip().splitlines() or [""]
        raise kind(f"{what}: {type(error).__name__} {lines[0]}".rstrip()) from error
