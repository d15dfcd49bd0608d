"""`bnfold fold --out-dir`: a line for each file, JSON lines, a summary, and exit code 1 if any failed."""

import json
import os
import subprocess
import sys

import onnx
import pytest
from small_networks import original, random_layers

FAST = ("--device", "cpu", "--samples", 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("in/sub")
    for seed, name in enumerate(("a", "sub/b")):
        onnx.save(original(random_layers(2, seed=seed)), f"in/{name}.onnx")
    return tmp_path


def test_each_file_has_a_line_and_all_of_them_a_table(run, folder):
    code, out, err = run("fold", "in", "-r", "--out-dir", "out", *FAST)
    assert (code, err) == (0, "")
    first, second, *table = out.splitlines()
    assert first.startswith("folded in/a.onnx: pass; 2 BatchNorms, 0 left (")
    assert second.startswith("folded in/sub/b.onnx: pass; 2 BatchNorms, 0 left (")
    assert [line.split() for line in table[:4]] == [[], ["files"], ["folded", "2"], ["BatchNorms", "4", "->", "0"]]
    code, out, _ = run("fold", "in", "-r", "--out-dir", "out", "--resume", *FAST)
    assert code == 0
    assert out.splitlines()[0].startswith("kept   in/a.onnx: pass")


def test_one_that_fails_makes_the_exit_code_and_the_rest_is_done(run, folder):
    (folder / "in/bad\x1b[2J.onnx").write_bytes(b"bad")
    code, out, err = run("fold", "in", "-r", "--out-dir", "out", "--json", *FAST)
    assert (code, err) == (1, "")
    documents = [json.loads(line) for line in out.splitlines()]
    assert [document["schema"] for document in documents] == ["bnfold.report/1", "bnfold.error/1", "bnfold.report/1"]
    assert documents[0]["options"]["samples"] == 1
    assert documents[1]["input"] == {"path": "in/bad\x1b[2J.onnx"}
    assert documents[1]["error"]["exit_code"] == 3
    code, out, err = run("fold", "in", "-r", "--out-dir", "out", "--quiet", *FAST)
    assert (code, out) == (1, "")
    assert err.startswith("failed in/bad\\x1b[2J.onnx: ")
    assert err.count("\n") == 1


def test_on_several_processes_from_a_shell(folder):
    words = [sys.executable, "-m", "bnfold", "fold", "in/a.onnx", "in/sub/b.onnx", "--out-dir", "out", "--jobs", "2"]
    words += ["--report", "page.html", *map(str, FAST)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(line.split()[1] for line in result.stdout.splitlines()[:2]) == ["in/a.onnx:", "in/sub/b.onnx:"]
    assert sorted(os.listdir("out")) == ["a.onnx", "a.onnx.bnfold.json", "b.onnx", "b.onnx.bnfold.json"]
    assert sorted(os.listdir("page")) == ["a.onnx.html", "b.onnx.html"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("in/a.onnx", "in/sub/b.onnx", "-o", "o.onnx"), 2, "2 models are given, and no --out-dir"),
        (("in/a.onnx", "-o", "o.onnx", "--out-dir", "out"), 2, "-o and --out-dir are both given"),
        (("in/a.onnx", "-o", "o.onnx", "--jobs", "2"), 2, "--jobs is for many files"),
        (("in/a.onnx", "-o", "o.onnx", "-r"), 2, "--recursive is for many files"),
        (("in/a.onnx", "-o", "o.onnx", "--resume"), 2, "--resume is for many files"),
        (("in", "--out-dir", "out"), 2, "in is a folder"),
        (("in/a.onnx", "--out-dir", "in"), 2, "would replace in/a.onnx"),
        (("in/a.onnx", "--out-dir", "out", "--jobs", "0"), 2, "See bnfold fold --help."),
        (("in/a.onnx", "--out-dir", "out", "--weights", "w.pth"), 2, "--weights is for a package.module:factory"),
        (("in/a.onnx", "--out-dir", "in/a.onnx"), 5, "the output folder in/a.onnx cannot be made"),
        (("in/a.onnx", "--out-dir", "out", "--report", "page.pdf"), 5, "page.pdf does not end in"),
    ],
)
def test_what_contradicts_itself_is_refused_before_the_work(run, folder, words, code, says):
    found, out, err = run("fold", *words)
    assert (found, out) == (code, "")
    assert says in err
    assert not os.path.exists("o.onnx")
    assert not os.path.exists("out")
