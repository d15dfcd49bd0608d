"""Many files: each is done or said not to be, on any executor; what is there stays where that is asked for."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
from small_networks import original, random_layers

import bnfold
from bnfold.files import kept as kept_module
from bnfold.files.kept import report_beside

FAST = {"device": "cpu", "samples": 1}
EXPORTED = Path(__file__).parents[1] / "onnx" / "exported"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", "sub/c")):
        path = tmp_path / "in" / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(original(random_layers(2, seed=seed)), path)
    (tmp_path / "in/bad.onnx").write_bytes(b"bad")
    return tmp_path


def statuses(outcomes):
    return {outcome.name: outcome.status.value for outcome in outcomes}


ALL = {"a.onnx": "folded", "b.onnx": "folded", "bad.onnx": "failed", "sub/c.onnx": "folded"}


def with_threads():
    return ThreadPoolExecutor(2)


@pytest.mark.parametrize("make", [None, with_threads])
def test_what_can_be_folded_is_and_the_rest_is_said(folder, make):
    seen = []
    if make is None:
        outcomes = bnfold.fold_files("in", "out", recursive=True, on_done=seen.append, **FAST)
    else:
        with make() as executor:
            outcomes = bnfold.fold_files("in", "out", recursive=True, executor=executor, on_done=seen.append, **FAST)
    assert statuses(outcomes) == ALL
    assert [outcome.name for outcome in outcomes] == sorted(ALL)
    assert {*map(id, seen)} == {*map(id, outcomes)}
    bad = next(outcome for outcome in outcomes if outcome.name == "bad.onnx")
    assert isinstance(bad.error, bnfold.ModelLoadError)
    assert "not a complete ONNX model" in bad.headline()
    for outcome in outcomes:
        if outcome is not bad:
            assert outcome.headline() == "pass; 2 BatchNorms, 0 left"
            assert bnfold.inspect(outcome.destination).batch_norms == 0
            assert json.loads(report_beside(Path(outcome.destination)).read_bytes()) == outcome.report.to_dict()
    assert sorted(os.listdir("out")) == ["a.onnx", "a.onnx.bnfold.json", "b.onnx", "b.onnx.bnfold.json", "sub"]


def resumed(**options):
    outcomes = bnfold.fold_files("in", "out", recursive=True, resume=True, **{**FAST, **options})
    return {outcome.name: outcome.status.value for outcome in outcomes if outcome.name != "bad.onnx"}


def test_what_is_there_and_verified_stays(folder, monkeypatch):
    kept = dict.fromkeys(("a.onnx", "b.onnx", "sub/c.onnx"), "kept")
    folded = dict.fromkeys(kept, "folded")
    assert resumed() == folded
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.onnx")}
    assert resumed(threads=1, timeout_s=100) == kept
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.onnx")} == before

    onnx.save(original(random_layers(2, seed=9)), "in/a.onnx")  # another source
    with open("out/b.onnx", "ab") as file:  # another result
        file.write(b"\n\0")
    assert resumed() == {**kept, "a.onnx": "folded", "b.onnx": "folded"}
    report_beside(Path("out/a.onnx")).write_text("[" * 100_000)
    report_beside(Path("out/b.onnx")).write_text('{"schema": "bnfold.report/1"}')
    Path("out/sub/c.onnx").unlink()
    assert resumed() == folded
    assert resumed(samples=2) == folded
    assert resumed(skip=("*bn0*",), samples=2) == folded
    assert resumed(skip=("*bn0*",), samples=2) == kept
    monkeypatch.setattr(kept_module, "__version__", "0.0.1")
    assert resumed(skip=("*bn0*",), samples=2) == folded


def test_what_was_not_verified_is_folded_again_where_it_is_to_be(folder):
    assert set(resumed(verify=False).values()) == {"folded"}
    assert set(resumed(verify=False).values()) == {"kept"}
    assert set(resumed().values()) == {"folded"}


def test_a_batch_norm_that_is_left_fails_its_file_alone(folder):
    outcomes = bnfold.fold_files(
        ["in/a.onnx", "in/b.onnx"], "out", skip=("*bn0*",), leftover="keep", require_all=True, **FAST
    )
    assert set(statuses(outcomes).values()) == {"failed"}
    assert os.listdir("out") == []
    assert "--require-all" in outcomes[0].headline()


def test_a_dry_run_writes_nothing(folder):
    assert statuses(bnfold.fold_files("in", "out", recursive=True, dry_run=True)) == ALL
    assert not os.path.exists("out")


def test_arguments_that_contradict_each_other_are_refused(folder):
    with pytest.raises(bnfold.UsageError, match="jobs is 0"):
        bnfold.fold_files("in", "out", jobs=0)
    with with_threads() as executor, pytest.raises(bnfold.UsageError, match="without an executor"):
        bnfold.fold_files("in", "out", jobs=2, executor=executor)
    (folder / "taken").touch()
    with pytest.raises(bnfold.OutputError, match="the output folder taken cannot be made"):
        bnfold.fold_files("in/a.onnx", "taken")


def test_a_page_lists_all_and_links_to_a_page_for_each(folder):
    Path("in/a.onnx").rename("in/a #1%.onnx")
    bnfold.fold_files("in", "out", recursive=True, page="report.html", **FAST)
    text = Path("report.html").read_text(encoding="utf-8")
    assert 'href="report/sub/c.onnx.html"' in text
    assert 'href="report/a%20%231%25.onnx.html"' in text
    assert "1 failed" in text
    assert text.count("<tr>") == 5
    assert "not a complete ONNX model" in text
    assert sorted(path.name for path in Path("report").rglob("*.html")) == [
        "a #1%.onnx.html",
        "b.onnx.html",
        "c.onnx.html",
    ]
    bnfold.fold_files("in", "out", recursive=True, resume=True, page="report.md", **FAST)
    lines = Path("report.md").read_text(encoding="utf-8").splitlines()
    assert "2 → 0 | " in next(line for line in lines if "b.onnx" in line)
    assert lines[2].startswith("1 failed, 0 folded, 3 as they were before; 6 BatchNorms in them, 0 left.")
    assert sum(line.startswith("| [<code>") for line in lines) == 3
    assert Path("report/sub/c.onnx.md").read_text(encoding="utf-8").startswith("## bnfold: pass")


def test_a_page_counts_the_affines_that_were_spelled_out(folder):
    bnfold.fold_files(EXPORTED / "keras_unet.onnx", "out", page="report.md", verify=False)
    assert "0 → 0, 2 spelled-out affines folded | " in Path("report.md").read_text(encoding="utf-8")


def children():
    """The processes that this one has started, by the system's own list."""
    return [int(name) for path in Path("/proc/self/task").glob("*/children") for name in path.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds its children in /proc")
@pytest.mark.parametrize("times", [1, 100])
def test_a_process_that_dies_is_replaced_and_its_file_tried_once_more(folder, times):
    known, over, killed = set(children()), threading.Event(), []

    def kill():
        while not over.wait(0.01):
            for number in set(children()) - known - set(killed):
                if len(killed) < times:
                    os.kill(number, signal.SIGKILL)
                    killed.append(number)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        outcomes = bnfold.fold_files(["in/a.onnx", "in/b.onnx"], "out", jobs=2, **FAST)
    finally:
        over.set()
        killer.join()
    if times == 1:
        assert statuses(outcomes) == {"a.onnx": "folded", "b.onnx": "folded"}
    else:
        assert statuses(outcomes) == {"a.onnx": "failed", "b.onnx": "failed"}
        assert "ended before it was done (signal 9)" in outcomes[0].headline()
    assert set(children()) <= known
    assert not [name for name in os.listdir("out") if name.startswith(".bnfold")]


def test_the_processes_end_where_the_caller_is_interrupted(folder, monkeypatch):
    known, threads, raised = set(children()), threading.active_count(), []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bnfold.fold_files("in", "out", recursive=True, jobs=2, on_done=interrupt, **FAST)
    assert set(children()) <= known
    assert (threading.active_count(), raised) == (threads, [])
    assert not [name for name in os.listdir("out") if name.startswith(".bnfold")]
