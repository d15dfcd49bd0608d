"""What is being done, in words: to whoever listens, and to the log "bnfold", at level INFO: silent by default."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

_Item = TypeVar("_Item")

Progress = Callable[[str], None]
"""Called with what begins now, such as "running the original"."""

_LOG = logging.getLogger("bnfold")
_LISTENER: ContextVar[Progress | None] = ContextVar("listener", default=None)
_PHASE: ContextVar[str] = ContextVar("phase", default="")


@contextmanager
def heard_by(progress: Progress | None) -> Iterator[None]:
    """A callback is told what begins while the block lasts; without one, whoever listened before goes on listening."""
    token = _LISTENER.set(progress or _LISTENER.get())
    try:
        yield
    finally:
        _LISTENER.reset(token)


def begin(words: str) -> None:
    """Tells that a phase begins."""
    _PHASE.set(words)
    _LOG.info(words)
    listener = _LISTENER.get()
    if listener is not None:
        listener(words)


def each(items: Sequence[_Item], kind: str, done: int = 0) -> Iterator[_Item]:
    """The items that a phase goes through; of more than one, the number of each is told when its turn comes.

    Args:
        items: The items.
        kind: What each is.
        done: How many came before them.
    """
    phase = _PHASE.get()
    try:
        for number, item in enumerate(items, start=1 + done):
            if done + len(items) > 1:
                begin(f"{phase}, {kind} {number} of {done + len(items)}")
            yield item
    finally:
        _PHASE.set(phase)
