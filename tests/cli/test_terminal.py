"""What reaches a terminal: names from files as text, and the truth about what was written when stdout is broken."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from bnfold.errors import ModelLoadError
from bnfold.text.printable import printable, printable_json

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"
PROGRAM = [sys.executable, "-c", "from bnfold.cli.main import main; main()"]
FORGED = "bn\n\npass: outputs match on GPU\x1b[2J\x1b[31m\r\x07\x9b\u202e\u2028"


def is_clean(text):
    return all(character.isprintable() or character == "\n" for character in text)


def test_text_is_escaped_as_in_python():
    assert printable("a\n\x1b[2J\x9b\u202e\ud800é模") == r"a\n\x1b[2J\x9b\u202e\ud800é模"
    assert printable("x" * 20_000) == "x" * 10_000 + "… (10000 more characters)"


def test_json_is_escaped_as_in_json():
    value = {"name": FORGED + "\x7f\ud800\U000e0041é"}
    document = printable_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert is_clean(document)
    assert "é" in document
    assert json.loads(document) == value


def test_an_error_is_one_line_whatever_it_names():
    error = ModelLoadError(f"{FORGED} is no model", hint=f"Rename {FORGED}.")
    assert is_clean(str(error) + error.hint)
    assert "\n" not in str(error) + error.hint


@pytest.fixture
def forged(tmp_path):
    """A model in which every name is a forged line."""
    proto = onnx.load(SAMPLE)
    for index, node in enumerate(proto.graph.node):
        node.name = f"{FORGED}{index}"
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("words", [("fold", "-v", "-o", "out.onnx"), ("inspect",)])
def test_names_from_a_file_are_only_text(run, forged, words, monkeypatch):
    monkeypatch.chdir(forged.parent)
    code, out, err = run(words[0], forged, *words[1:])
    assert (code, err) == (0, "")
    assert is_clean(out)
    assert r"bn\n\npass: outputs match on GPU\x1b[2J\x1b[31m\r\x07\x9b\u202e\u2028" in out
    assert not any(line.startswith("pass: outputs match on GPU") for line in out.splitlines())


def test_names_from_a_file_in_json(run, forged):
    code, out, _ = run("inspect", forged, "--json")
    assert code == 0
    assert is_clean(out)
    assert FORGED in json.loads(out)["folds"][0]["nodes"][0]


def test_names_in_an_error(run, forged):
    proto = onnx.load(forged)
    proto.graph.node[0].input[0] = "no\x1b[2J\nvalue"
    onnx.save(proto, forged)
    code, out, err = run("inspect", forged)
    assert (code, out) == (3, "")
    assert is_clean(err)
    assert err.count("\n") == 1


@pytest.fixture
def external(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    proto = onnx.load(SAMPLE)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return folder / "m.onnx"


def test_every_file_is_named_with_its_true_size(run, external, tmp_path):
    out = tmp_path / "out.onnx"
    code, said, _ = run("fold", external, "-o", out, "--no-verify")
    assert code == 0
    (data,) = tmp_path.glob("*.data")
    last = said.splitlines()[-2:]
    assert last[0].startswith(f"wrote {out} and {data.name} in ")
    read = sum(file.stat().st_size for file in external.parent.iterdir())
    written = out.stat().st_size + data.stat().st_size
    assert ["size", f"{read / 1000:.1f}", "kB", f"{written / 1000:.1f}", "kB"] in [*map(str.split, said.splitlines())]
    assert last[1] == "the model needs its data file beside it, under that name: copy both"


def test_the_hash_of_a_report_covers_the_data(run, external, tmp_path):
    def reported():
        _, said, _ = run("fold", external, "-o", tmp_path / "out.onnx", "--no-verify", "--json", "--force")
        return json.loads(said)

    first = reported()
    assert first["input"]["bytes"] == sum(file.stat().st_size for file in external.parent.iterdir())
    assert first["input"]["data_files"] == ["weights"]
    data = bytearray((external.parent / "weights").read_bytes())
    data[0] ^= 1
    (external.parent / "weights").write_bytes(data)
    second = reported()
    assert first["input"]["bytes"] == second["input"]["bytes"]
    assert first["input"]["sha256"] != second["input"]["sha256"]
    assert first["output"]["sha256"] != second["output"]["sha256"]
    assert first["output"]["data_files"] != second["output"]["data_files"]


def test_the_hash_is_that_of_the_files_one_after_the_other(run, external, tmp_path):
    _, said, _ = run("fold", external, "-o", tmp_path / "out.onnx", "--no-verify", "--json")
    shown = subprocess.run(
        "cat m.onnx weights | sha256sum", shell=True, cwd=external.parent, capture_output=True, check=True
    )
    assert shown.stdout.decode().split()[0] == json.loads(said)["input"]["sha256"]


def test_the_input_of_a_report_is_what_was_read(run, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(SAMPLE.read_bytes())
    _, said, _ = run("fold", path, "-o", path, "--force", "--no-verify", "--json")
    report = json.loads(said)
    assert report["input"]["bytes"] == SAMPLE.stat().st_size
    assert report["input"]["sha256"] != report["output"]["sha256"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_stdout_that_is_full(tmp_path, more):
    words = ["fold", str(SAMPLE), "-o", str(tmp_path / "out.onnx"), "--no-verify", *more]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    written = f"{tmp_path / 'out.onnx'} was written all the same."
    assert done.stderr == f"error: stdout cannot be written to: No space left on device. {written}\n"
    assert (tmp_path / "out.onnx").exists()


def test_a_stdout_that_nobody_reads(tmp_path):
    read, write = os.pipe()
    os.close(read)
    words = ["fold", str(SAMPLE), "-o", str(tmp_path / "out.onnx"), "--no-verify"]
    done = subprocess.run([*PROGRAM, *words], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    assert (tmp_path / "out.onnx").exists()


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors")
def test_closed_descriptors_are_not_taken_by_the_files_that_are_written(tmp_path):
    words = ["fold", str(SAMPLE), "-o", str(tmp_path / "out.onnx"), "--no-verify"]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *PROGRAM, *words], check=False)
    assert done.returncode == 0
    onnx.load(tmp_path / "out.onnx")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(number, tmp_path):
    slow = (
        "import signal, time, bnfold.onnx.file.output as output\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background starts without one
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "put = output.Output.put\n"
        "output.Output.put = lambda *words: time.sleep(0.2) or put(*words)\n"
    )
    program = slow + "from bnfold.cli.main import main; main()"
    words = ["fold", str(SAMPLE), "-o", str(tmp_path / "out.onnx"), "--no-verify"]
    child = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.iterdir()):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(number)
    _, said = child.communicate()
    assert child.returncode == 128 + number
    assert said == "interrupted; no file was left half written.\n"
    assert list(tmp_path.iterdir()) == []
