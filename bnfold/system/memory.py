"""How much memory is left, to refuse what cannot fit before the system ends the process for it."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bnfold.text.tables import size

_CGROUP = Path("/sys/fs/cgroup")


def memory_left() -> int:
    """Bytes that this process can still allocate: the least of what the system, its container and its limit leave."""
    return min(memory_of_all(), _least(_of_limit))


def memory_of_all() -> int:
    """Bytes that the system and the container have left: where there are none, they end processes."""
    return _least(_of_system, _of_container)


def _least(*measures: Callable[[], int]) -> int:
    found = [sys.maxsize]
    for measure in measures:
        with suppress(ImportError, OSError, ValueError, LookupError, StopIteration):
            found.append(measure())
    return min(found)


def require_memory(nbytes: int, what: str, refusal: Callable[[str], Exception]) -> None:
    """Require that something fits into the memory that is left.

    Args:
        nbytes: How much it takes.
        what: What a sentence calls it.
        refusal: Makes the error of a sentence.
    """
    left = memory_left()
    if nbytes > left:
        raise refusal(f"{what} would take {size(nbytes)}, and {size(left)} of memory are left")


def _of_system() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _of_container() -> int:
    most, used = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    files = int(counts["inactive_file"]) + int(counts["active_file"])  # what was read or written, and may be dropped
    return max(0, most - used + files)


def _of_limit() -> int:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
