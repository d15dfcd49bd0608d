"""A limit on the time that a run of a model takes, and on its memory: it may loop for ever.

A run can be interrupted, by Ctrl-C as by its time limit: onnxruntime is told to stop from outside, while the caller
waits; PyTorch runs in the caller's own thread, which gets an exception.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeVar

from bnfold.errors import UsageError, VerificationError
from bnfold.system.memory import memory_of_all

RUN_LIMIT_S = 600.0
"""Longest time for one run of a model if the caller says nothing: far more than any model needs that is fit for use."""

_GRACE_S = 10.0
_AGAIN_S = 0.5
_RESERVE_NBYTES = 1 << 27  # below it, systems end processes
_LIMIT_S: ContextVar[float] = ContextVar("limit_s", default=RUN_LIMIT_S)
_Result = TypeVar("_Result")


class _TimeUp(BaseException):
    """Raised in a thread whose time is up; no Exception, for the code of a model may catch those."""


@contextmanager
def limited_to(limit_s: float | None) -> Iterator[None]:
    """Limits the time of each run that begins while the block lasts.

    Args:
        limit_s: The limit in seconds; None for the one that holds already.

    Raises:
        UsageError: It is not positive.
    """
    if limit_s is None:
        yield
        return
    if not limit_s > 0:
        raise UsageError(f"the time limit is {limit_s:g} s", hint="Give seconds, more than 0.")
    token = _LIMIT_S.set(limit_s)
    try:
        yield
    finally:
        _LIMIT_S.reset(token)


def require_threads(threads: int | None) -> None:
    """Require that a number of threads is one.

    Raises:
        UsageError: It is not positive.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}", hint="Give at least 1, or nothing for the runtime's own choice.")


def run_apart(run: Callable[[], _Result], stop: Callable[[], None]) -> _Result:
    """Run what holds no lock of Python's in a thread of its own, so that the caller stays responsive.

    Args:
        run: The work.
        stop: Makes it end early; called from the caller's thread.

    Raises:
        VerificationError: The time is up, or the memory.
    """
    limit_s, results = _LIMIT_S.get(), list[_Result]()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(run())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)
        finally:
            over.set()

    # Python 3.11 takes a thread for ended once a join of it was interrupted, so it is not joined.
    over = threading.Event()
    threading.Thread(target=work, daemon=True).start()
    deadline = time.monotonic() + limit_s
    try:
        while not over.wait(min(_AGAIN_S, limit_s)):  # not every system interrupts a longer wait
            if time.monotonic() > deadline:
                raise _over(limit_s)
            if memory_of_all() < _RESERVE_NBYTES:
                raise VerificationError(
                    "a run of the model takes all the memory that is left, so nothing can be compared",
                    hint="Give smaller inputs with --input, or more memory.",
                )
    except BaseException:
        stop()
        over.wait(_GRACE_S)
        raise
    for error in errors:
        raise error
    return results[0]


def run_here(run: Callable[[], _Result]) -> _Result:
    """Run Python code in the caller's thread, which is where its settings count.

    Args:
        run: The work; an operation that it is in the middle of is not interrupted.

    Raises:
        VerificationError: The time is up.
    """
    limit_s = _LIMIT_S.get()
    caller, guard, over, raised = threading.get_ident(), threading.Lock(), threading.Event(), threading.Event()

    def watch() -> None:
        patience_s = min(limit_s, threading.TIMEOUT_MAX)
        while not over.wait(patience_s):
            patience_s = _AGAIN_S  # whoever catches everything has to catch it for ever
            with guard:
                if not over.is_set():
                    raised.set()
                    _raise_in(caller, ctypes.py_object(_TimeUp))

    def end() -> None:
        with guard:
            over.set()
        if raised.is_set():
            # What has not been raised yet is raised here, for the last time. It is not taken back: Python 3.11 would
            # stay alarmed, and run in a circle under a profiler.
            with suppress(_TimeUp):
                _raise_in(caller, ctypes.py_object(_TimeUp))
                while True:
                    pass

    # one function and no context manager: an exception between the frames of one would leave the watch running
    try:
        try:
            threading.Thread(target=watch, daemon=True).start()
            return run()
        finally:
            end()
    except _TimeUp:
        end()  # it may have come in the middle of the other one
        raise _over(limit_s) from None


def _raise_in(thread: int, exception: ctypes.py_object[type[BaseException]]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)


def _over(limit_s: float) -> VerificationError:
    return VerificationError(
        f"a run of the model did not end within {limit_s:g} s, so nothing can be compared",
        hint="Allow more with --timeout, or give smaller inputs with --input.",
    )
