"""`--report`: a page whatever the verdict, beside the terminal or JSON, and refused before the work begins."""

import hashlib
import json
import subprocess
import sys

import onnx
import pytest
from small_networks import changed, folded, original, random_layers

FAST = ("--device", "cpu", "--samples", 1)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers = random_layers(3)
    onnx.save(original(layers), "a.onnx")
    onnx.save(folded(changed(layers, 1, beta=layers[1].beta * 1.01)), "wrong.onnx")
    return tmp_path


def test_a_fold_writes_a_page_with_files_and_counts(run, files):
    code, out, err = run("fold", "a.onnx", "-o", "b.onnx", "--report", "page.html", "--json", *FAST)
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["operators_before"] == {"Conv": 3, "BatchNormalization": 3, "Relu": 2, "Identity": 1}
    assert document["operators_after"] == {"Conv": 3, "Relu": 2, "Identity": 1}
    assert [entry["batch_norms"] for entry in document["folds"]] == [1, 1, 1]
    page = (files / "page.html").read_text(encoding="utf-8")
    for name in ("a.onnx", "b.onnx"):
        assert hashlib.sha256((files / name).read_bytes()).hexdigest() in page
    assert page.count("<rect") == 3


def test_a_fold_that_writes_no_model_writes_its_page(run, files):
    code, out, _ = run("fold", "a.onnx", "--dry-run", "--report", "page.md")
    assert code == 0
    assert "nothing was written" in out
    assert (
        (files / "page.md")
        .read_text(encoding="utf-8")
        .startswith("## bnfold: skipped\n\nNothing was compared: dry run.")
    )


def test_a_failed_verification_writes_its_page(run, files):
    code, out, _ = run("verify", "a.onnx", "wrong.onnx", "--report", "page.html", *FAST)
    assert code == 1
    assert out.splitlines()[0].startswith("fail: ")
    page = (files / "page.html").read_text(encoding="utf-8")
    assert '<div class="verdict is-fail">' in page
    assert hashlib.sha256((files / "wrong.onnx").read_bytes()).hexdigest() in page


def test_of_two_places_to_write_to_none_is_dropped_in_silence(run, files):
    once = ("fold", "a.onnx", "-o", "b.onnx", "--report", "a.html")
    for option, more in (("--report", ["--report=b.md"]), ("--output", ["-o", "c.onnx"]), ("--output", ["-oc.onnx"])):
        code, out, err = run(*once, *more)
        assert (code, out) == (2, "")
        assert err == f"error: {option} is given 2 times, and names one thing to write. Give it once.\n"
    assert sorted(path.name for path in files.iterdir()) == ["a.onnx", "wrong.onnx"]


@pytest.mark.parametrize("words", [("fold", "a.onnx", "-o", "b.onnx"), ("verify", "a.onnx", "wrong.onnx")])
@pytest.mark.parametrize("page", ["page.pdf", "missing/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(run, files, words, page):
    code, out, err = run(*words, "--report", page)
    assert (code, out) == (5, "")
    assert err.startswith("error: ")
    assert not (files / "b.onnx").exists()


def test_templates_are_loaded_only_for_a_page(files):
    code = (
        "import sys; from bnfold.cli.main import app;"
        "app(['fold', 'a.onnx', '--dry-run', '--json'], standalone_mode=False);"
        "assert 'jinja2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
