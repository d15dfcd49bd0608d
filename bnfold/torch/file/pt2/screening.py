"""What the JSON documents of a .pt2 archive may say; whatever would make torch run code is refused before it is loaded.

torch evaluates some of these texts, looks others up as functions, and pastes names into Python code that it compiles.
So every text is refused unless it is known to be harmless where it stands.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from bnfold.errors import ModelLoadError, UnsafeModelError, UnsupportedModelError
from bnfold.torch.file.pt2.expressions import is_guard, is_symbolic
from bnfold.torch.file.pt2.operators import Target, classify

_PLAIN = re.compile(r"[\w.\-+/: ]*")
"""Names and paths: nothing here can call, index or assign when it is pasted into code."""

_QUOTED = frozenset({"as_string", "as_strings"})
"""Arguments of operators, which torch writes into code as literals."""

_SPECS = frozenset({"in_spec", "out_spec"})
_TARGETS = frozenset({"target", "as_operator"})
_OBJECTS = frozenset({"custom_obj", "as_custom_obj"})

_Path = tuple[str, ...]


def screen(document: object, path: Path) -> None:
    """Look through a document of an archive.

    Args:
        document: What json.loads gave.
        path: The archive, for messages.

    Raises:
        UnsafeModelError: Loading or running the program would run code of its own, or unpickle something.
        UnsupportedModelError: It needs an operator that is not registered.
        ModelLoadError: It is malformed.
    """
    try:
        for where, text in _texts(document, ()):
            _screen_text(where, text, path)
    except RecursionError:
        raise ModelLoadError(f"{path} is nested too deeply.") from None


def _texts(value: object, where: _Path) -> Iterator[tuple[_Path, str]]:
    """All texts of a document with the keys that lead to them; keys are texts at the place of what they lead to."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield (*where, "key"), key
            if not _is_metadata(key, item):
                yield from _texts(item, (*where, key))


def _is_metadata(key: str, value: object) -> bool:
    """Whether this is the text that torch keeps about a node (stack traces), which it never evaluates."""
    return key == "metadata" and isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _screen_text(where: _Path, text: str, path: Path) -> None:
    key = where[-1] if where else ""
    if key == "key" and text in _OBJECTS:
        raise UnsafeModelError(
            f"{path} holds a custom object, which torch would unpickle.", hint="Export the model without it."
        )
    if key in _QUOTED:
        return
    if key in _TARGETS:
        _screen_target(text, path)
        return
    if key in _SPECS:
        harmless = _is_plain_spec(text)
    elif key == "expr_str" or where[-2:] == ("range_constraints", "key"):
        harmless = is_symbolic(text)
    elif key == "guards_code":
        harmless = is_guard(text)
    else:
        harmless = _PLAIN.fullmatch(text) is not None
    if not harmless:
        raise UnsafeModelError(
            f"{path} says {text[:80]!r} where a name or a size belongs, and torch would run that as code.",
            hint="If the file is yours, rename what is called so and export it again.",
        )


def _screen_target(target: str, path: Path) -> None:
    kind = classify(target)
    if kind is Target.UNKNOWN_OPERATOR:
        raise UnsupportedModelError(
            f"{path} uses the operator {target[:120]!r}, which is not registered here.",
            hint="Import the package that it comes from first.",
        )
    if kind is Target.FORBIDDEN:
        raise UnsafeModelError(f"{path} would call {target[:120]!r}, which is more than an operator on tensors.")


def _is_plain_spec(text: str) -> bool:
    """Whether a description of nested arguments, JSON with JSON in its texts, holds nothing but plain names."""
    try:
        value = json.loads(text)
    except ValueError:
        return _PLAIN.fullmatch(text) is not None
    if isinstance(value, str):
        return _is_plain_spec(value) if value != text else False
    return all(_is_plain_spec(item) for _, item in _texts(value, ()))
