"""What others run of this repository: the GitHub Action, the pre-commit hook, the release; and its version."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from small_networks import folded, original, random_layers

import bnfold

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra test")

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash on this machine")


@pytest.fixture
def folder(tmp_path):
    """Two models, and a `bnfold` that is this one."""
    layers = random_layers(1)
    (tmp_path / "models/deep").mkdir(parents=True)
    onnx.save(original(layers), tmp_path / "models/deep/-foldable.onnx")
    onnx.save(folded(layers), tmp_path / "models/good.onnx")
    (tmp_path / "models/broken.onnx").write_text("no model")
    (tmp_path / "bnfold/bin").mkdir(parents=True)
    command = tmp_path / "bnfold/bin/bnfold"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -c "from bnfold.cli.main import main; main()" "$@"\n')
    command.chmod(0o755)
    return tmp_path


def act(folder, models, fail_on="foldable"):
    step = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))["runs"]["steps"][1]
    assert step["env"] == {"MODELS": "${{ inputs.models }}", "FAIL_ON": "${{ inputs.fail-on }}"}
    environment = {
        **os.environ,
        "MODELS": models,
        "FAIL_ON": fail_on,
        "RUNNER_TEMP": str(folder),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("models", "fail_on", "code"),
    [
        ("models/good.onnx", "any", 0),
        ("models/**/*.onnx", "foldable", 1),
        ("models/good.onnx\nmodels/deep/-foldable.onnx", "any", 1),
        ("models/good.onnx models/broken.onnx", "foldable", 3),
        ("models/*.pt2", "foldable", 2),
        ("$(touch planted)", "foldable", 3),
    ],
)
def test_the_action_fails_as_inspect_does(folder, models, fail_on, code):
    if "**" in models:
        (folder / "models/broken.onnx").unlink()
    done = act(folder, models, fail_on)
    assert done.returncode == code, done.stdout + done.stderr
    assert not (folder / "planted").exists()


def test_the_action_tells_what_it_found(folder):
    done = act(folder, "models/deep/*.onnx")
    stop, *lines, go = done.stdout.splitlines()
    assert stop.removeprefix("::stop-commands::") == go.strip(":")
    assert len(go) == 36
    assert "1 BatchNorm: all can be folded" in "\n".join(lines)
    summary = (folder / "summary.md").read_text("utf-8")
    assert summary.startswith("<pre>")
    assert "-&gt;" in summary or "->" in summary
    assert "<" not in summary.replace("<pre>", "").replace("</pre>", "")


@pytest.mark.parametrize(("names", "code"), [(["good"], 0), (["deep/-foldable", "good"], 1), (["good", "broken"], 3)])
def test_the_hook_fails_as_inspect_does(folder, names, code):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    files = [f"models/{name}.onnx" for name in names]
    assert all(re.search(hook["files"], file) for file in files)
    environment = {**os.environ, "PATH": f"{folder / 'bnfold/bin'}:{os.environ['PATH']}"}
    words = [*shlex.split(hook["entry"]), *files]
    assert subprocess.run(words, cwd=folder, env=environment, capture_output=True, check=False).returncode == code


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == bnfold.__version__
    assert f"## [{bnfold.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    release = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    (expression,) = re.findall(r"sed -n ('.*?') bnfold/version.py", release)
    words = ["sed", "-n", *shlex.split(expression), str(ROOT / "bnfold/version.py")]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == bnfold.__version__
