"""How the command is started, stopped and set up: `python -m bnfold`, Ctrl-C, help pages, pyproject.toml, progress."""

import io
import re
import signal
import subprocess
import sys
import time

import pytest
from bnfold.cli.main import app
from bnfold.cli.shared import modules, progress
from onnx_files import conv_bn
from typer.testing import CliRunner

from bnfold.text.progress import begin

COMMANDS = ("fold", "inspect", "verify", "bench", "doctor")


def python(program, *words):
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)


def test_python_m_and_the_version():
    program = "import runpy; runpy.run_module('bnfold', run_name='__main__')"
    for option in ("-V", "--version"):
        done = python(program, option)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("bnfold ")


@pytest.mark.parametrize(
    ("module", "error"), [("typer", "KeyboardInterrupt"), ("bnfold.api", "RuntimeError() from KeyboardInterrupt()")]
)
def test_an_interruption_during_the_imports(module, error):
    """Python 3.11 raises a RuntimeError from one that comes while a class is being made."""
    program = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise {error}\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from bnfold.__main__ import main; main()"
    )
    done = python(program, "inspect", "model.onnx")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; no file was left half written.\n"


def test_with_torch_it_leaves_without_freeing_objects():
    program = (
        "import atexit, sys, threading, types\n"
        "sys.modules['torch'] = types.ModuleType('torch')\n"
        "class Kept:\n"
        "    def __del__(self): print('freed')\n"
        "kept = Kept()\n"
        "atexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start()\n"
        "from bnfold.__main__ import main; main()"
    )
    done = python(program, "-V")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["thread", "at exit"]
    assert python(program, "fold").returncode == 2


def test_the_installed_command_is_that_one():
    import tomllib
    from pathlib import Path

    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert settings["project"]["scripts"] == {"bnfold": "bnfold.__main__:main"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_plain_text_with_two_examples(command):
    words = [command] if command else []
    text = CliRunner().invoke(app, [*words, "--help"]).stdout
    *_, title, first, second = text.rstrip().splitlines()
    assert title.strip() == "Examples:"
    prefix = f"bnfold {command}".strip()
    assert first.strip().startswith(prefix)
    assert second.strip().startswith(prefix)
    assert text.isascii() or "×" in text
    assert CliRunner().invoke(app, [*words, "-h"]).stdout == text


def test_help_shows_import_paths_as_they_are_written():
    text = " ".join(CliRunner().invoke(app, ["fold", "--help"]).stdout.split())
    assert "package.module:factory: a function or class" in text
    assert "NAME:SHAPE[:DTYPE]" in text


def test_completion_can_be_shown():
    text = CliRunner().invoke(app, ["--help"]).stdout
    assert "--install-completion" in text


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fold --leftover m", "mul-add"),
        ("doctor --device cu", "cuda"),
        ("inspect --fail-on a", "any"),
        ("bench --device te", "tensorrt"),
        ("ver", "verify"),
    ],
)
def test_words_are_completed(typed, offered):
    asked = {
        "_BNFOLD_COMPLETE": "complete_bash",
        "COMP_WORDS": f"bnfold {typed}",
        "COMP_CWORD": str(len(typed.split())),
    }
    assert CliRunner().invoke(app, prog_name="bnfold", env=asked).stdout.split() == [offered]


def test_the_list_of_commands_is_not_cut():
    assert "..." not in CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout.partition("Commands")[2]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    conv_bn(tmp_path / "model.onnx", bns=2)
    return tmp_path


def configure(folder, text):
    (folder / "pyproject.toml").write_text(text)


FOLD = ("fold", "model.onnx", "-o", "o.onnx")


def test_options_from_pyproject(run, folder):
    configure(folder, '[tool.bnfold]\ndevice = "cpu"\nsamples = 2\n[tool.bnfold.fold]\nskip = ["bn1"]\n')
    code, out, err = run(*FOLD)
    assert (code, err) == (0, "")
    assert "2 BatchNorms: 1 folded, 1 left" in out
    assert "  outputs  2 samples" in out
    _, out, _ = run(*FOLD, "--samples", "1", "--skip", "bn0")
    assert "  outputs  1 sample," in out
    assert "bn0  [skipped]" in out


def test_pyproject_is_looked_for_upward(run, folder, monkeypatch):
    configure(folder, "[tool.bnfold.fold]\nno-verify = true\n")
    (folder / "inner").mkdir()
    (folder / "inner" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.chdir(folder / "inner")
    _, out, _ = run("fold", "../model.onnx", "-o", "o.onnx")
    assert out.startswith("skipped: --no-verify was asked for")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.bnfold]\ndevise = 'cpu'\n", "sets 'devise', which is no option. Perhaps device?"),
        ("[tool.bnfold.fold]\nfail-on = 'any'\n", "sets 'fail-on', which is no option"),
        ("[tool.bnfold]\ntrust-pickle = true\n", "sets trust-pickle, which has to be typed each time"),
        ("[tool.bnfold.fold]\nsamples = 'many'\n", "--samples"),
        ("[tool]\nbnfold = 3\n", "is not a table"),
        ("[tool.bnfold\n", "cannot be read"),
    ],
)
def test_a_setting_that_is_wrong(run, folder, text, says):
    configure(folder, text)
    code, out, err = run(*FOLD)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert not (folder / "o.onnx").exists()


def test_an_interruption_waits_until_torch_is_imported(monkeypatch):
    done = []

    def importing(*_):
        signal.raise_signal(signal.SIGINT)
        done.append("torch")

    monkeypatch.setattr(modules, "require", importing)
    # what is started in the background ignores it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            modules.import_torch()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["torch"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wait_for(words, stream, patience_s=30):
    end = time.monotonic() + patience_s
    while words not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.01)


def test_progress_is_shown_on_a_terminal_after_a_while(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE_S", 0.01)
    for stream, quiet, seen in ((Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.shown(quiet=quiet):
            begin("measuring [nothing] :factory:")
            wait_for("measuring", stream, 30 if seen else 0.1)
        assert ("measuring [nothing] :factory:" in stream.getvalue()) is seen


def test_what_is_printed_meanwhile_stands_above_the_progress(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE_S", 0.01)
    monkeypatch.setattr(sys, "stderr", Terminal())
    stream = sys.stderr
    with progress.shown(quiet=False):
        begin("measuring")
        wait_for("measuring", stream)
        print("weights", "from w.pth", file=sys.stderr)
        print("no end", end="", file=sys.stderr, flush=True)
    assert sys.stderr is stream
    assert re.search(r"(^|\n|\r|\x1b\[2K)weights from w\.pth *\n", stream.getvalue())
    assert stream.getvalue().endswith("no end")


def test_progress_keeps_its_time_and_its_one_line_on_a_narrow_terminal(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE_S", 0.01)
    whole = "running the folded model, sample 1 of 4"
    for width, line in ((80, whole), (38, "running th…, sample 1 of 4"), (20, "running…")):
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("COLUMNS", str(width))
        with progress.shown(quiet=False):
            begin(whole)
            wait_for("running", sys.stderr)
        assert re.search(rf"0:00:0\d {line}[\r\n]", re.sub(r"\x1b\[[0-9;]*m", "", sys.stderr.getvalue()))


def test_what_is_quick_shows_no_progress(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.shown(quiet=False):
        begin("measuring")
    assert sys.stderr.getvalue() == ""
