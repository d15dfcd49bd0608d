"""Kills of a fold, a few of each kind; `kills.py` does hundreds."""

import importlib.util
import os
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the process that it kills")


@pytest.fixture
def kills() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kills", Path(__file__).with_name("kills.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forks beside the threads of a test runner
def test_a_killed_fold_leaves_the_old_model_or_the_new_one(kills: ModuleType, tmp_path: Path) -> None:
    table = kills.everything(tmp_path, 24, step=5)
    assert kills.failures(table) == []
    assert len(table) == 8
    for kind, found in table.items():
        assert found["model 0"] + found["model 1"] + found["model 2"] > 0, kind


def test_what_is_mixed_or_left_over_is_seen(kills: ModuleType, tmp_path: Path) -> None:
    arena = kills.Arena(tmp_path, external=True)
    arena.reset()
    assert arena.state() == "model 0"
    (data,) = arena.place.glob("*.data")
    original = data.read_bytes()
    data.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert arena.state() == "MIXED"
    data.unlink()
    assert arena.state() == "MIXED"
    (arena.place / "litter").touch()
    assert "litter" in arena.litter_after_next_run()
    assert kills.failures({"kind": Counter({"MIXED": 1, "model 0": 3})}) == ["kind: MIXED"]
