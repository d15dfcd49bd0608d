"""Options from `[tool.bnfold]` of the nearest pyproject.toml: what is typed there is as if typed, unless typed again.

[tool.bnfold]
device = "cpu"            # every command that has --device
[tool.bnfold.fold]
skip = ["head.*"]         # this command alone
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import typer

from bnfold.errors import UsageError, perhaps

FILE = "pyproject.toml"
_ONLY_TYPED = ("trust-pickle", "help", "version")
"""Options that a file in the folder of a model must not set for its reader."""


def defaults(context: typer.Context, folder: Path) -> dict[str, dict[str, object]]:
    """Default values of parameters by command and name, as click takes them.

    Args:
        context: That of the group of all commands.
        folder: Where the search for the file begins; it goes upward to the first that has a section for bnfold.

    Raises:
        UsageError: The file is not valid, or names an option that there is not.
    """
    path, table = _section(folder)
    if path is None:
        return {}
    commands: dict[str, typer.core.TyperCommand] = getattr(context.command, "commands", {})
    common = {key: value for key, value in table.items() if key not in commands}
    own = {name: _mapping(table.get(name, {}), f"[tool.bnfold.{name}] of {path}") for name in commands}
    known = {name: _options(command) for name, command in commands.items()}
    everywhere = {option for options in known.values() for option in options}
    _require_known(common, everywhere, f"[tool.bnfold] of {path}")
    found = {}
    for name, options in known.items():
        _require_known(own[name], set(options), f"[tool.bnfold.{name}] of {path}")
        given = {**{key: value for key, value in common.items() if key in options}, **own[name]}
        found[name] = {options[key]: value for key, value in given.items()}
    return found


def _section(folder: Path) -> tuple[Path | None, Mapping[str, object]]:
    for place in (folder, *folder.parents):
        path = place / FILE
        if path.is_file():
            try:
                content = tomllib.loads(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise UsageError(f"{path} cannot be read: {error}") from error
            table = _mapping(content.get("tool", {}), f"[tool] of {path}").get("bnfold")
            if table is not None:
                return path, _mapping(table, f"[tool.bnfold] of {path}")
    return None, {}


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} is not a table of options")
    return value


def _options(command: "typer.core.TyperCommand") -> dict[str, str]:
    """The names of the options of a command, without dashes, and of their parameters."""
    return {
        option.removeprefix("--"): str(parameter.name)
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and option.removeprefix("--") not in _ONLY_TYPED
    }


def _require_known(given: Mapping[str, object], known: set[str], where: str) -> None:
    for key in given:
        if key in _ONLY_TYPED:
            raise UsageError(f"{where} sets {key}, which has to be typed each time")
        if key not in known:
            raise UsageError(f"{where} sets {key!r}, which is no option", hint=perhaps(key, known))
