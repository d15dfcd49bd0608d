"""`bnfold bench` on a terminal: a table of figures, not of promises; one JSON document; errors in one sentence."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from bnfold.cli import bench
from bnfold.cli.main import app
from onnx import parser
from typer.testing import CliRunner

from bnfold.errors import UsageError
from bnfold.latency import benchmarking
from bnfold.latency.timing import Round
from bnfold.text.tables import duration

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"


def run(*words):
    return CliRunner().invoke(app, ["bench", *map(str, words)])


def short(*words):
    return run(*words, "--device", "cpu", "--seconds", "0.001")


@pytest.fixture
def rounds(monkeypatch):
    """Lets a test say what was measured."""

    def set_rounds(*pairs_s):
        measured = tuple(Round((one, one), (other, other)) for one, other in pairs_s)
        monkeypatch.setattr(benchmarking, "interleave", lambda original, folded, seconds: measured)

    return set_rounds


def test_a_table_with_a_line_for_each_batch(rounds):
    rounds(*[(0.003, 0.0015)] * 5, (0.0031, 0.001), (0.0018, 0.001))
    result = short(SAMPLE, SAMPLE, "--batch", "1,8", "--threads", "1")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("onnxruntime ")
    assert "on CPU (CPUExecutionProvider, " in lines[0]
    assert ", 1 thread on " in lines[0]
    assert lines[0].endswith("all optimisations on")
    header, first, second = (line for line in lines if line[:5].strip() in ("batch", "1", "8"))
    assert header.split() == "batch original IQR folded IQR original/folded interval rounds folded is".split()
    assert first.split() == "1 3.00 ms 0.00 µs 1.50 ms 375 µs 2.000 1.800-3.100 1.800-3.100 faster".split()
    assert second.split()[0] == "8"
    assert "the median of 7 rounds, with its 98% interval" in result.stdout
    assert lines[-1] == "only speed was compared: whether the outputs match is for `bnfold verify` to say"
    assert result.stderr.splitlines() == [
        "measuring both models with batch 1 for 0.002 s",
        "measuring both models with batch 8 for 0.002 s",
    ]


@pytest.mark.parametrize(
    ("pairs_s", "words"),
    [
        ([(1.0, 1.01), (1.01, 1.0), (1.0, 1.0), (1.0, 1.02), (1.02, 1.0), (1.0, 1.0)], "as fast, up to noise"),
        ([(1.0, 1.1)] * 6, "slower"),
        ([(1.1, 1.0)] * 6, "faster"),
    ],
)
def test_noise_is_no_difference(rounds, pairs_s, words):
    rounds(*pairs_s)
    row = short(SAMPLE, SAMPLE).stdout.splitlines()[3]
    assert row.startswith("-  ")
    assert row.endswith(f"  {words}")


def test_json_is_one_document_and_nothing_else():
    result = short(SAMPLE, SAMPLE, "--json", "--batch", "2", "--seed", "5")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["schema"] == "bnfold.bench/1"
    assert document["original"] == str(SAMPLE)
    assert document["config"] == {"seed": 5, "seconds": 0.001}
    assert document["comparisons"][0]["inputs"][0]["shape"] == [2, 1, 8, 8]
    assert "measuring" in result.stderr


def test_why_there_is_no_gpu_is_told(monkeypatch):
    from bnfold.errors import DeviceError
    from bnfold.latency import onnx_runner

    def refuse():
        raise DeviceError("CUDA cannot be used: no driver")

    monkeypatch.setattr(onnx_runner, "cuda_device", refuse)
    result = run(SAMPLE, SAMPLE, "--seconds", "0.001")
    assert "not on a GPU: CUDA cannot be used: no driver" in result.stdout
    failed = run(SAMPLE, SAMPLE, "--seconds", "0.001", "--device", "cuda")
    assert failed.exception.exit_code == 4


def test_shapes_and_data(tmp_path):
    np.savez(tmp_path / "data.npz", image=np.ones((3, 1, 8, 8), np.float32))
    shape = short(SAMPLE, SAMPLE, "--input", "image:4,1,8,8", "--json")
    assert json.loads(shape.stdout)["comparisons"][0]["inputs"][0]["shape"] == [4, 1, 8, 8]
    data = short(SAMPLE, SAMPLE, "--inputs", tmp_path / "data.npz", "--json")
    assert json.loads(data.stdout)["comparisons"][0]["inputs"][0]["source"] == "given"
    ranged = short(SAMPLE, SAMPLE, "--val-range", "image:0,16")
    assert ranged.exit_code == 0


def test_errors(tmp_path):
    other = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n] image) => (float[n] y) { y = Neg(image) }'
    )
    onnx.save(other, tmp_path / "other.onnx")
    for words, code in (
        ((SAMPLE, SAMPLE, "--batch", "1,x"), 2),
        ((SAMPLE, SAMPLE, "--batch", "0"), 2),
        ((SAMPLE, SAMPLE, "--inputs", tmp_path / "gone.npz"), 3),
        ((SAMPLE, tmp_path / "gone.onnx"), 3),
        ((tmp_path / "gone.pt2", tmp_path / "gone.pt2"), 3),
        ((SAMPLE, tmp_path / "other.onnx"), 2),
    ):
        result = short(*words)
        assert (words, result.stdout) == (words, "")
        assert result.exception.exit_code == code
    assert run(SAMPLE).exit_code == 2
    assert run(SAMPLE, SAMPLE, "--seconds", "-1").exit_code != 0


@pytest.mark.parametrize(("text", "sizes"), [("", ()), ("1", (1,)), ("1,8, 32", (1, 8, 32))])
def test_batch_sizes(text, sizes):
    assert bench._batch_sizes(text) == sizes


def test_batch_sizes_that_are_none():
    with pytest.raises(UsageError, match="--batch 'many' is not a list of sizes"):
        bench._batch_sizes("many")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5e-5, "25.0 µs"), (1.39e-4, "139 µs"), (0.0161, "16.1 ms"), (0.9994, "999 ms"), (12.345, "12.3 s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image, weights=None):
        y = self.bn(self.conv(image))
        return y if weights is None else y * weights.reshape(-1, 1, 1, 1)


class Fixed(nn.Module):
    def forward(self, image):
        return image.reshape(2, -1).sum(1)
"""


@pytest.fixture
def code(monkeypatch, tmp_path):
    """A folder with a module of code, from which commands are run."""
    (tmp_path / "bench_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("bench_nets", None)


def shapes(result):
    """The shape of each input at each batch size."""
    assert result.exit_code == 0, result.exception
    comparisons = json.loads(result.stdout)["comparisons"]
    return [tuple(tuple(entry["shape"]) for entry in comparison["inputs"]) for comparison in comparisons]


@pytest.mark.usefixtures("code")
def test_code_at_several_batch_sizes(tmp_path):
    words = ("bench_nets:Net", "bench_nets:Net", "--batch", "1,3", "--json")
    assert shapes(short(*words, "--input", "1,3,8,8")) == [((1, 3, 8, 8),), ((3, 3, 8, 8),)]
    both = ("--input", "image:2,3,8,8", "--input", "weights:2")
    assert shapes(short(*words, *both)) == [((1, 3, 8, 8), (1,)), ((3, 3, 8, 8), (3,))]
    np.savez(tmp_path / "data.npz", image=np.ones((2, 3, 8, 8), np.float32))
    assert shapes(short(*words, "--inputs", "data.npz")) == [((1, 3, 8, 8),), ((3, 3, 8, 8),)]


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bench_nets:Net", "--input", "image:2,3,8,8", "--input", "weights:1"), "do not agree about the batch"),
        (("bench_nets:Fixed", "--input", "2,3,1,1"), "the original model does not run with batch 3: "),
    ],
)
def test_batch_sizes_that_code_does_not_take(words, message):
    result = short(words[0], *words, "--batch", "3")
    assert result.stdout == ""
    assert message in str(result.exception)
    assert result.exception.exit_code == 2


def test_programs_at_several_batch_sizes(tmp_path):
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    inputs, path = (torch.zeros(2, 3, 8, 8),), tmp_path / "net.pt2"
    torch.export.save(torch.export.export(module, inputs, dynamic_shapes=({0: torch.export.Dim("n")},)), path)
    assert shapes(short(path, path, "--batch", "1,3", "--json")) == [((1, 3, 8, 8),), ((3, 3, 8, 8),)]
    torch.export.save(torch.export.export(module, inputs), path)
    assert "the batch size is fixed" in str(short(path, path, "--batch", "1").exception)
