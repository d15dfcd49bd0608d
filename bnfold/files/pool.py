"""Processes of our own that fold files: as many as asked for, with their part of the processors, whatever dies.

They are plain children that speak over pipes and not of `multiprocessing`, whose children run the script of the caller
again, and whose pools end as a whole when one of them dies. A child whose caller is gone ends after the file in work.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import cast

from bnfold.files.records import FileOutcome, Request

_LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_CHILD = "import sys; sys.path[:] = {path!r}; from bnfold.files.pool import serve; serve()"
_ATTEMPTS = 2

Lost = Callable[[Request, str], FileOutcome]


def in_processes(requests: list[Request], jobs: int, threads: int, lost: Lost) -> Generator[FileOutcome, None, None]:
    """Outcomes as they come, from processes that do not outlive the generator.

    Args:
        requests: The files.
        jobs: How many processes there are.
        threads: How many threads the libraries of each have.
        lost: Says what became of a file whose process died, each time that it was tried, and of what.
    """
    waiting, outcomes = SimpleQueue[Request](), SimpleQueue[FileOutcome]()
    for request in requests:
        waiting.put(request)
    workers = [_Worker(threads, lost) for _ in range(min(jobs, len(requests)))]
    minders = [Thread(target=worker.work_off, args=(waiting, outcomes), daemon=True) for worker in workers]
    for thread in minders:
        thread.start()
    try:
        for _ in requests:
            yield outcomes.get()
    finally:
        for worker in workers:
            worker.stop()
        for thread in minders:
            thread.join()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve() -> None:
    """What a child does: it folds what it reads, and writes what became of it, until there is no more."""
    from bnfold.files.one import fold_one

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to stderr
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)  # noqa: S301 - both ends are ours
        except EOFError:
            return
        pickle.dump(fold_one(request), answers)
        answers.flush()


class _Worker:
    """A child, and another one where that dies."""

    def __init__(self, threads: int, lost: Lost) -> None:
        self._settings = {**dict.fromkeys(_LIBRARIES, str(threads)), **os.environ}
        self._lost = lost
        self._lock = Lock()
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def work_off(self, waiting: "SimpleQueue[Request]", outcomes: "SimpleQueue[FileOutcome]") -> None:
        """Has files folded until there are no more; then the child ends."""
        try:
            while not self._stopped:
                outcomes.put(self._folded(waiting.get_nowait()))
        except Empty:
            pass
        finally:
            self._end()

    def stop(self) -> None:
        """Ends the child, whatever it is doing; who waits for its answer closes the pipes."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.terminate()

    def _folded(self, request: Request) -> FileOutcome:
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                process = self._running()
                assert process.stdin is not None
                assert process.stdout is not None
                pickle.dump(request, process.stdin)
                process.stdin.flush()
                return cast("FileOutcome", pickle.load(process.stdout))  # noqa: S301 - both ends are ours
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                code = self._end()
                reason = f"signal {-code}" if code < 0 else f"exit code {code}" if code else str(error)
            if self._stopped:
                break
        return self._lost(request, reason)

    def _running(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._stopped:
                raise EOFError
            if self._process is None:
                self._process = subprocess.Popen(  # noqa: S603 - of our own words
                    [sys.executable, "-P", "-c", _CHILD.format(path=sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=self._settings,
                    process_group=0,  # Ctrl-C is for the caller, which ends the others
                )
            return self._process

    def _end(self) -> int:
        """Ends the child, and gives its exit code, negative for a signal that it died of by itself."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return 0
            process.terminate()
            code = process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            return code
