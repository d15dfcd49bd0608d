"""A few seconds of fuzzing; `fuzz.py` does it for as long as wanted. What it once found is in `test_findings.py`."""

import importlib.util
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="forks, and watches its children in /proc"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # forks beside the threads of a test runner
]


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["onnx", "npz", "safetensors"])
def test_files_that_were_changed_at_random(fuzz: ModuleType, kind: str) -> None:
    counts, findings = fuzz.fuzz(kind, 1, seed=0)
    assert findings == {}
    assert set(counts) <= {"folded", "refused"}
    assert sum(counts.values()) > 0


@pytest.mark.slow
def test_programs_that_were_changed_at_random(fuzz: ModuleType) -> None:
    counts, findings = fuzz.fuzz("pt2", 10, seed=0)
    assert findings == {}
    assert counts["refused"] > 0


def endless(_: Path) -> None:
    while True:
        pass


def wrong(_: Path) -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("run", "says"),
    [(wrong, "TRACEBACK KeyError"), (lambda _: os.kill(os.getpid(), signal.SIGSEGV), "CRASH -11"), (endless, "HANG")],
)
def test_what_should_not_be_is_found(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch, run, says) -> None:
    monkeypatch.setitem(fuzz.KINDS, "npz", replace(fuzz.KINDS["npz"], run=run))
    monkeypatch.setattr(fuzz, "HANG_S", 0.2)
    monkeypatch.setattr(fuzz, "BATCH", 3)
    counts, findings = fuzz.fuzz("npz", 0.5, seed=0)
    assert set(counts) == {says.split()[0]}
    assert list(findings) == list(range(len(findings)))
    assert all(said.startswith(says) for said in findings.values())
