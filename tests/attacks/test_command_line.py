"""Words of a command line that no honest person types, and code that ends the process: a sentence each."""

import sys
from pathlib import Path

import pytest
from bnfold.cli.main import main

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"
SHAPE = ("--input", "1,3,8,8")

CODE = """
import torch
class End(BaseException): pass
def ends(): raise End("no more")
def leaves(): raise GeneratorExit
def exits(): raise SystemExit(143)
def net(): return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
"""


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """The exit code and what is printed to stderr, which is one line."""
    (tmp_path / "hostile_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "hostile_code", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["bnfold", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert "a bug in bnfold" not in error
        return stop.value.code, error

    yield run
    sys.modules.pop("hostile_code", None)


@pytest.mark.parametrize("factory", ["ends", "leaves", "exits"])
def test_a_factory_that_raises_what_nobody_catches(said, factory):
    code, error = said("inspect", f"hostile_code:{factory}", *SHAPE)
    assert code == 3
    assert f"hostile_code:{factory} failed" in error


@pytest.mark.parametrize("text", ['{"a":' * 5000, "[" * 100_000, "{", "1" * 5000, "null", "[]"])
def test_arguments_that_are_no_object(said, text):
    code, error = said("inspect", "hostile_code:net", *SHAPE, "--kwargs", text)
    assert code == 2
    assert "--kwargs" in error


@pytest.mark.parametrize(
    "model", ["a" * 5000 + ".onnx", "a" * 5000, "a" * 256 + ":x", "m\x1b[2J.onnx", "a" * 251 + ".onnx"]
)
def test_names_that_no_file_has(said, model):
    assert said("inspect", model)[0] == 3


@pytest.mark.parametrize("name", ["o" * 251 + ".onnx", "o" * 5000 + ".onnx", "a/" * 3000 + "o.onnx"])
def test_destinations_that_no_folder_takes(said, name):
    assert said("fold", SAMPLE, "-o", name, "--no-verify")[0] == 5


@pytest.mark.parametrize("shape", ["1,3,999999999,999999999", "9" * 30 + ",3,8,8"])
def test_inputs_that_no_memory_holds(said, shape):
    code, error = said("inspect", "hostile_code:net", "--input", shape)
    assert code == 2
    assert "GB of memory are left" in error


def test_a_state_dict_with_thousands_of_prefixes(said, tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save({"module." * 3000 + name: tensor for name, tensor in net.state_dict().items()}, tmp_path / "w.pt")
    code, error = said("inspect", "hostile_code:net", *SHAPE, "--weights", "w.pt")
    assert code == 3
    assert "does not fit" in error


def test_no_sentence_is_longer_than_a_few_screens(said, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"k" * 10**6: torch.zeros(1)}, tmp_path / "w.pt")
    assert len(said("inspect", "hostile_code:net", *SHAPE, "--weights", "w.pt")[1]) < 20_000
