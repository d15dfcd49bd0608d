"""Locks on folders that live as long as their process: a kill releases them, and nothing is left of them.

Not every system has them for folders (Windows and some network file systems do not): there, nothing is locked, and what
only a lock would make safe is not done.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bnfold.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PATIENCE_S = 120.0
_PAUSE_S = 0.02
_NO_LOCKS = {errno.ENOTSUP, errno.EBADF, errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EACCES, errno.EPERM}


class HeldByAnotherError(Exception):
    """Another process holds the lock."""


def take(folder: Path) -> int | None:
    """Take the lock of a folder; a link is not followed.

    Returns:
        A descriptor, which keeps the lock until it is closed; None where folders have no locks.

    Raises:
        HeldByAnotherError: Another process, or another part of this one, has it.
        OSError: There is no such folder, or it cannot be opened.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise HeldByAnotherError from error
        if error.errno in _NO_LOCKS:
            return None
        raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, waiting for it; what it gives says whether there is one.

    Raises:
        OutputError: Another process has kept it for too long.
        OSError: There is no such folder, or it cannot be opened.
    """
    descriptor = _waited_for(folder)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _waited_for(folder: Path) -> int | None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return take(folder)
        except HeldByAnotherError as error:
            if time.monotonic() > deadline:
                raise OutputError(
                    f"Another process has been writing to the folder {folder} for {_PATIENCE_S:.0f} s.",
                    hint="Wait for it or end it, then try again.",
                ) from error
        time.sleep(_PAUSE_S)
