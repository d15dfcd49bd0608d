"""Text from files and strangers, fit for a terminal, which takes some characters for commands."""

import re

_LONGEST = 10_000
_UNPRINTABLE = re.compile(r"[^ -~]")


def printable(text: str) -> str:
    """Text with everything that is no visible character escaped as in Python, and cut where it would fill screens."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text) - _LONGEST} more characters)"
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0].isprintable() else _escaped(found[0]), text)


def printable_json(document: str) -> str:
    """A JSON document, in whose strings JSON itself leaves some such characters, with those escaped as JSON does."""
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0].isprintable() or found[0] == "\n" else _json_escaped(found[0]), document
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
