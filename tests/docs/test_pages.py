"""The pages of docs/: complete where they list what is in the code, and what is generated is really there."""

import importlib.util
import re
from pathlib import Path

import pytest

import bnfold
from bnfold.errors import BnfoldError
from bnfold.graph import Op
from bnfold.reasons import StopCode

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections(page, mark):
    """The text under each heading of one level."""
    parts = re.split(rf"^{mark} (.*)$", (ROOT / "docs" / page).read_text("utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_code_has_a_section_that_says_something():
    found = sections("left.md", "###")
    assert {name.strip("`") for name in found} == {code.value for code in StopCode}
    for name, text in found.items():
        assert len(text.split("##")[0].split()) > (8 if name != "`unused`" else 3), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_generated_has_a_place_and_is_made(page):
    made = hooks().on_page_markdown(page.read_text("utf-8"))
    assert not re.search(r"\{\{ \w+ \}\}", made)


def test_the_table_of_rules_has_every_operator():
    table = hooks().rules()
    assert table.startswith("| operator | backward | forward |\n|---|---|---|\n")
    assert {op.value for op in Op} <= set(re.findall(r"[a-z_]+", table))


def test_the_table_of_errors_has_every_exception():
    rows = [line.strip("| ").split(" | ")[:2] for line in hooks().errors().splitlines()[2:]]
    kinds = {kind.__name__: kind.exit_code for kind in (BnfoldError, *BnfoldError.__subclasses__())}
    assert {name.strip("`"): int(code) for name, code in rows} == kinds
    assert {name for name in bnfold.__all__ if name.endswith("Error")} == set(kinds)


def test_every_exit_code_is_explained():
    codes = {
        int(code) for code in re.findall(r"^\| (\d+)[ ,]", (ROOT / "docs/messages.md").read_text("utf-8"), re.MULTILINE)
    }
    assert codes >= {kind.exit_code for kind in BnfoldError.__subclasses__()} | {0, 70, 130}


def test_every_page_is_in_the_navigation():
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert set(re.findall(r": ([\w-]+\.md)$", settings, re.MULTILINE)) == {page.name for page in PAGES}


def test_what_is_public_has_a_place_in_the_reference():
    text = (ROOT / "docs/api.md").read_text("utf-8")
    errors = {name for name in bnfold.__all__ if name.endswith("Error")}
    records = {"Verdict", "InputSpec", "__version__"}
    for name in set(bnfold.__all__) - errors - records:
        assert re.search(rf"^::: bnfold\.[\w.]+\.{name}$", text, re.MULTILINE), name
