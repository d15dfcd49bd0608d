"""The rooms of the package: which may import which, and that none is too full or without a word on what it is for.

`ARROWS` is the table. A room is a folder, or a file at the top of the package; a file may always import its own room.
"""

import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FULL = 13  # files, beside the one that says what the room is for

BASE = {"errors", "version", "model_kind", "reasons", "input_spec", "extras", "system", "text"}
"""What anybody may import: these import nothing of the package but each other."""

VERIFICATION = {"verification/judging", "verification/inputs", "verification/runtime"}

ARROWS: dict[str, set[str]] = {
    "algebra": set(),
    "graph": {"algebra"},
    "rules": {"algebra", "graph"},
    "planning": {"algebra", "graph", "rules", "planning/merging", "planning/together"},
    "planning/together": {"algebra", "graph", "rules", "planning"},
    "planning/merging": {"algebra", "graph", "planning"},
    "onnx": {"graph", "planning", "onnx/file", "onnx/lift", "onnx/lift/shapes", "onnx/edit", "onnx/proto"},
    "onnx/proto": set(),
    "onnx/file": {"onnx/proto"},
    "onnx/lift": {
        *("algebra", "graph", "onnx/file", "onnx/lift/moves", "onnx/lift/precision", "onnx/lift/shapes"),
        "onnx/proto",
    },
    "onnx/lift/moves": {"algebra", "graph", "onnx/lift", "onnx/proto"},
    "onnx/lift/shapes": {"onnx/file", "onnx/lift", "onnx/proto"},
    "onnx/lift/precision": {"algebra", "onnx/lift", "onnx/proto"},
    "onnx/edit": {
        *("algebra", "graph", "planning", "onnx/file", "onnx/lift", "onnx/lift/precision", "onnx/lift/shapes"),
        "onnx/proto",
    },
    "torch": set(),
    "torch/fx": {"algebra"},
    "torch/file": {"torch/fx", "torch/capture", "torch/file/pt2", "onnx/file"},
    "torch/file/pt2": set(),
    "torch/capture": {"torch/fx"},
    "torch/lift": {"algebra", "graph", "torch/fx", "torch/lift/moves", "torch/lift/memory"},
    "torch/lift/moves": {"algebra", "graph", "torch/fx", "torch/lift"},
    "torch/lift/memory": {"graph", "torch/fx", "torch/lift"},
    "torch/program": {
        *("algebra", "graph", "planning", "torch/fx", "torch/lift", "torch/lift/moves", "torch/lift/memory"),
    },
    "torch/module": {
        *("algebra", "graph", "planning", "torch/fx", "torch/capture", "torch/lift", "torch/lift/memory"),
        *("torch/module/rehearsal", "torch/module/structure", "torch/module/trials"),
    },
    "torch/module/structure": {"algebra", "torch/fx", "torch/capture", "torch/module"},
    "torch/module/rehearsal": {"algebra", "graph", "torch/fx", "torch/capture", "torch/module"},
    "torch/module/trials": {"torch/capture", "torch/module"},
    "report": {"planning", "graph"},
    "report/page": {"planning", "report"},
    "verification": {
        *("report", "torch/capture", "verification/exact", "verification/onnx", "verification/torch"),
        "verification/torch/run",
    }
    | VERIFICATION,
    "verification/judging": {"report"},
    "verification/inputs": {"report", "onnx/proto", "verification/judging", "verification/runtime"},
    "verification/runtime": {"onnx/file", "onnx/proto", "verification/judging"},
    "verification/onnx": {
        *("report", "onnx", "onnx/file", "onnx/lift", "onnx/proto"),
        *("verification/onnx/outputs", "verification/onnx/sites"),
    }
    | VERIFICATION,
    "verification/onnx/outputs": {
        *("report", "onnx/file", "onnx/lift", "onnx/lift/shapes", "onnx/proto", "verification/onnx/sites"),
    }
    | VERIFICATION,
    "verification/onnx/sites": {"report", "onnx/file", "onnx/lift", "onnx/lift/shapes", "onnx/proto"} | VERIFICATION,
    "verification/torch": {
        *("report", "torch/capture", "verification/torch/run", "verification/torch/outputs"),
        "verification/torch/sites",
    }
    | VERIFICATION,
    "verification/torch/run": {"report", "torch/file", "torch/fx", "torch/capture"} | VERIFICATION,
    "verification/torch/outputs": {"report", "torch/fx", "verification/torch/run"} | VERIFICATION,
    "verification/torch/sites": {
        *("report", "graph", "planning", "torch/fx", "torch/lift", "verification/torch/run"),
    }
    | VERIFICATION,
    "verification/exact": {"algebra", "graph", "planning", "report", "verification/judging"},
    "verification/exact/onnx": {
        *("algebra", "graph", "planning", "report", "onnx", "onnx/edit", "onnx/file", "onnx/lift"),
        *("onnx/lift/precision", "onnx/lift/shapes", "onnx/proto", "verification/exact"),
        *("verification/onnx/outputs", "verification/onnx/sites"),
    }
    | VERIFICATION,
    "verification/exact/torch": {
        *("algebra", "graph", "planning", "report", "torch/fx", "torch/lift", "torch/program", "torch/module"),
        *("torch/capture", "verification/exact", "verification/torch/run", "verification/torch/sites"),
    },
    "latency": {
        *("report", "onnx", "onnx/lift", "onnx/proto", "verification/inputs", "verification/runtime"),
        "verification/torch/run",
    },
    "checking": {
        *("planning", "report", "onnx", "onnx/file", "torch/capture", "torch/program", "torch/module", "verification"),
        *("verification/runtime", "verification/exact", "verification/exact/onnx", "verification/exact/torch"),
    },
    "result": {"planning", "report"},
    "api": {
        *("checking", "planning", "result", "onnx", "onnx/file", "torch/file", "torch/capture"),
        *("torch/program", "torch/module"),
    },
    "loading": {"torch/capture", "torch/file", "torch/module/structure"},
    "files": {
        "api",
        "planning",
        "report",
        "report/page",
        "result",
        "onnx/file",
        "verification",
        "verification/runtime",
    },
    "__main__": {"cli"},
    "": {"api", "files", "latency", "loading", "planning", "report", "result", "verification"},
    "cli": {"", "cli/shared", "files", "planning", "report", "latency", "verification/runtime"},
    "cli/shared": {
        *("", "files", "graph", "planning", "report", "result", "verification", "verification/exact"),
        *("latency", "report/page", "onnx", "onnx/file", "onnx/proto", "torch/file", "torch/capture"),
    },
}

ONLY_THERE = {("torch/file", "onnx/file"): {"torch/file/to_onnx.py"}}
"""Arrows that one file may have, and the rest of its room may not."""


def rooms_of(root: Path) -> dict[str, list[Path]]:
    """The files of each room, and of what lies at the top."""
    rooms: dict[str, list[Path]] = {}
    for file in sorted([*(root / "bnfold").rglob("*.py"), *(root / "cli").rglob("*.py")]):
        folder = file.parent.relative_to(root).as_posix().removeprefix("bnfold").removeprefix("/")
        room = folder or ("" if file.stem == "__init__" else file.stem)
        rooms.setdefault(room, []).append(file)
    return rooms


def modules_of(root: Path) -> dict[str, tuple[str, Path]]:
    """The room and the file of each module, by its name."""
    found = {}
    for room, files in rooms_of(root).items():
        for file in files:
            parts = file.relative_to(root).with_suffix("").parts
            parts = ("bnfold", *parts) if parts[0] == "cli" else parts
            found[".".join(part for part in parts if part != "__init__")] = room, file
    return found


def absolute(node: ast.ImportFrom, own: Sequence[str]) -> str:
    """The module that an import names; `own` is the package of the file, in parts."""
    above = [*own[: len(own) + 1 - node.level]] if node.level else []
    return ".".join([*above, *filter(None, [node.module])])


def imports_of(name: str, modules: Mapping[str, tuple[str, Path]]) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in it."""
    file = modules[name][1]
    own = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (taken.name for taken in node.names if taken.name in modules)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, own)
            for taken in node.names if module in modules else ():
                inner = f"{module}.{taken.name}"
                yield inner if inner in modules else module


def forbidden(root: Path) -> list[str]:
    """The imports that the table does not allow."""
    modules = modules_of(root)
    found = []
    for module, (room, file) in modules.items():
        for name in imports_of(module, modules):
            target = modules[name][0]
            own = file.relative_to(root).as_posix().removeprefix("bnfold/")
            allowed = target in ({room} | BASE | ARROWS.get(room, set()))
            if not allowed or own not in ONLY_THERE.get((room, target), {own}):
                found.append(f"{own} imports {name}")
    return found


def circles(root: Path) -> list[str]:
    """Files that import each other, the long way round too."""
    modules = modules_of(root)
    arrows = {name: {*imports_of(name, modules)} - {name} for name in modules}
    while True:
        leaves = {name for name, targets in arrows.items() if not targets & arrows.keys()}
        if not leaves:
            return sorted(arrows)
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}


def test_every_import_is_in_the_table() -> None:
    assert forbidden(ROOT) == []


def test_no_files_import_each_other() -> None:
    assert circles(ROOT) == []


def test_what_anybody_may_import_imports_nothing_else() -> None:
    modules = modules_of(ROOT)
    base = [name for name, (room, _) in modules.items() if room in BASE]
    for name in base:
        assert {*imports_of(name, modules)} <= {*base}, name


@pytest.mark.parametrize(
    "room", [room for room, files in rooms_of(ROOT).items() if files[0].stem == "__init__" and room]
)
def test_a_room_is_not_full_and_says_what_it_is_for(room: str) -> None:
    door, *files = rooms_of(ROOT)[room]
    assert door.name == "__init__.py"
    assert len(files) <= FULL
    first, _, second = ast.get_docstring(ast.parse(door.read_text(encoding="utf-8"))).partition("\n\n")
    assert first.endswith(".")
    assert second.endswith(".")


def test_every_room_is_in_the_table_and_in_the_wheel() -> None:
    rooms = rooms_of(ROOT)
    assert set(ARROWS) | BASE == set(rooms)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {f"bnfold.{room}".rstrip(".").replace("/", ".") for room in rooms}
    files = {f"bnfold.{room}" for room, (file, *_) in rooms.items() if room and file.stem == room}
    assert set(settings["tool"]["setuptools"]["packages"]) == packages - files


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("rules/row.py", "import bnfold.onnx.file.load", "rules/row.py imports bnfold.onnx.file.load"),
        ("algebra/affine.py", "from bnfold import graph", "algebra/affine.py imports bnfold.graph"),
        (
            "torch/file/save.py",
            "def f():\n    from bnfold.onnx.file import wire",
            "torch/file/save.py imports bnfold.onnx.file.wire",
        ),
        ("report/records.py", "from bnfold.cli.main import main", "report/records.py imports bnfold.cli.main"),
    ],
)
def test_an_arrow_that_the_table_has_not_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    for module_file in (file for files in rooms_of(ROOT).values() for file in files):
        copy = tmp_path / module_file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(module_file.read_text(encoding="utf-8"), encoding="utf-8")
    planted = tmp_path / "bnfold" / file
    planted.write_text(planted.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    assert forbidden(tmp_path) == [complaint]


def test_two_files_that_import_each_other_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "bnfold" / "algebra"
    folder.mkdir(parents=True)
    (tmp_path / "cli").mkdir()
    for name, other in (("first", "second"), ("second", "first")):
        (folder / f"{name}.py").write_text(f"from bnfold.algebra.{other} import anything\n")
    assert circles(tmp_path) == ["bnfold.algebra.first", "bnfold.algebra.second"]
