"""What MkDocs takes from the code while it builds: the table of rules, the exceptions, the fields of a report.

The code is read, not imported, so that the pages can be built without the packages that bnfold needs.
"""

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path

TOP = Path(__file__).parents[1]


def rules() -> str:
    """The table in the docstring of `bnfold/rules/table.py`."""
    text = ast.get_docstring(_parsed("bnfold/rules/table.py")) or ""
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


def errors() -> str:
    """The exceptions of `bnfold/errors.py` as a table."""
    rows = [f"| `{name}` | {code} | {said} |" for name, code, said in _exceptions()]
    return "\n".join(["| exception | exit code | when |", "|---|---|---|", *rows])


def schema_fields() -> str:
    """The fields of each document that is printed with --json, and of what is in it, from its schema."""
    return "\n\n".join(_described(kind) for kind in ("report", "bench", "doctor", "error"))


def _described(kind: str) -> str:
    schema = json.loads((TOP / f"docs/schemas/{kind}-1.json").read_text(encoding="utf-8"))
    parts = [f"## `{schema['title']}`", schema["description"], _fields(schema)]
    for name, part in schema["$defs"].items():
        if "properties" in part:
            parts += [f"### `{name}`", part["description"], _fields(part)]
    return "\n\n".join(parts)


GENERATED: dict[str, Callable[[], str]] = {"rules": rules, "errors": errors, "schema_fields": schema_fields}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Puts what is generated in its place; MkDocs calls it for each page."""
    for name, make in GENERATED.items():
        place = f"{{{{ {name} }}}}"
        if place in markdown:
            markdown = markdown.replace(place, make())
    return markdown


def _fields(part: dict[str, dict[str, dict[str, object]]]) -> str:
    rows = [f"| `{name}` | {_one_line(field)} |" for name, field in part["properties"].items()]
    return "\n".join(["| field | what it holds |", "|---|---|", *rows])


def _one_line(field: dict[str, object]) -> str:
    said = str(field.get("description") or _named(str(field.get("$ref", ""))))
    return said.replace("|", "\\|")


def _named(reference: str) -> str:
    name = reference.rpartition("/")[2]
    if name == "nonfinite_values":
        return "How many numbers beside it are not finite; they are null."
    return f"See `{name}`."


def _exceptions() -> Iterator[tuple[str, int, str]]:
    for node in _parsed("bnfold/errors.py").body:
        if isinstance(node, ast.ClassDef):
            said = (ast.get_docstring(node) or "").splitlines()[0]
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "exit_code":
                    yield node.name, ast.literal_eval(line.value), said


def _parsed(path: str) -> ast.Module:
    return ast.parse((TOP / path).read_text(encoding="utf-8"))
