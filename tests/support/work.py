"""Counts the work of the package in bytecodes, so that tests of growth hold on any machine."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import bnfold

_PACKAGE = str(Path(bnfold.__file__).parent)


class TooMuchWorkError(AssertionError):
    """More bytecodes were executed than allowed."""


def bytecodes(act: Callable[[], object], limit: int | None = None) -> int:
    """How many bytecodes of the package a call executes, those of what it calls among them; raises above the limit."""
    count = 0

    def local(_: FrameType, event: str, __: Any) -> Any:
        nonlocal count
        if event == "opcode":
            count += 1
            if limit is not None and count > limit:
                message = f"more than {limit} bytecodes"
                raise TooMuchWorkError(message)
        return local

    def enter(frame: FrameType, _: str, __: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        act()
    finally:
        sys.settrace(before)
    return count
