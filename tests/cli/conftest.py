"""What the tests of the command line share."""

import shutil
import sys
from pathlib import Path

import pytest
from bnfold.cli.main import main

HERE = Path(__file__).parent


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `bnfold` with some words; gives its exit code, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["bnfold", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = 0 if stop.code is None else stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def factories(monkeypatch, tmp_path):
    """A folder of its own, with `nets.py` in it: `torch_factories.py` under a name that is imported anew."""
    shutil.copy(HERE / "torch_factories.py", tmp_path / "nets.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    yield
    sys.modules.pop("nets", None)
