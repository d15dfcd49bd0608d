"""A few seconds of fuzzing; `fuzz.py` does it for as long as wanted. What it once found is in `test_findings.py`."""

import importlib.util
import os
import signal
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("onnx", "1"), ("npz", "1"), ("safetensors", "1"), pytest.param("pt2", "10", marks=pytest.mark.slow)],
)
def test_files_that_were_changed_at_random(kind: str, seconds: str) -> None:
    # In a process of its own: a child that is forked beside the threads of a runtime waits for them for ever.
    words = [sys.executable, str(Path(__file__).with_name("fuzz.py")), seconds, "--kind", kind]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    name, *outcomes = done.stdout.replace(",", "").split()
    assert name == kind
    assert {*outcomes[::2]} <= {"folded", "refused"}
    assert sum(map(int, outcomes[1::2])) > 0


def endless(_: Path) -> None:
    while True:
        pass


def wrong(_: Path) -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("run", "says"),
    [(wrong, "TRACEBACK KeyError"), (lambda _: os.kill(os.getpid(), signal.SIGKILL), "CRASH -9"), (endless, "HANG")],
)
def test_what_should_not_be_is_found(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch, run, says) -> None:
    monkeypatch.setitem(fuzz.KINDS, "npz", replace(fuzz.KINDS["npz"], run=run))
    monkeypatch.setattr(fuzz, "HANG_S", 0.2)
    monkeypatch.setattr(fuzz, "BATCH", 3)
    counts, findings = fuzz.fuzz("npz", 0.5, seed=0)
    assert set(counts) == {says.split()[0]}
    assert list(findings) == list(range(len(findings)))
    assert all(said.startswith(says) for said in findings.values())
