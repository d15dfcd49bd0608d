"""The samples for other tools work, and print what docs/recipes.md shows of them."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def without_figures(text):
    """Lines whose figures of one processor (how far off, how large) are left out; counts and accuracies stay."""
    cut = re.sub(r"\d\.\d+e-\d\d|[\d,]+ bytes|\b\d\.\d\d%", "…", text)
    return {line.strip() for line in cut.splitlines() if line.strip()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "package"),
    [
        ("quantise_digits", "onnxruntime"),
        ("quantise_digits_pt2e", "torchao"),
        ("digits_in_openvino", "openvino"),
        ("digits_in_executorch", "executorch"),
    ],
)
def test_a_sample_says_what_the_recipes_show(script, package, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; it comes with the extra samples")
    words = [sys.executable, ROOT / f"samples/{script}.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (ROOT / "docs/recipes.md").read_text("utf-8")
    assert f"samples/{script}.py" in page
    assert without_figures(done.stdout) <= without_figures(page)


def test_a_sample_notices_predictions_that_are_wrong(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "samples")
    spec = importlib.util.spec_from_file_location("quantise_digits", ROOT / "samples/quantise_digits.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    right = script.logits(script.MODEL)
    monkeypatch.setattr(script, "rows", lambda: [("as it was", None)])
    for found, code in ((right, 0), (np.roll(right, 1, axis=1), 1)):
        monkeypatch.setattr(script, "quantised", lambda *_, found=found, **__: (found, 0))
        assert script.main() == code
