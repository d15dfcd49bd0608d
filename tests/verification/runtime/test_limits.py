"""What a verification runs ends: in time, when it is interrupted, or before it starts where memory would not do."""

import _thread
import contextlib
import cProfile
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnxruntime
import pytest
from bnfold.cli.main import app
from onnx import parser
from typer.testing import CliRunner

import bnfold
from bnfold.errors import UsageError, VerificationError
from bnfold.system import memory
from bnfold.verification import verify
from bnfold.verification.runtime import limits


def endless() -> onnx.ModelProto:
    return parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1,4] x) => (float[1,4] y)'
        " <bool go = {1}> {"
        " y = Loop (, go, x) <body = b (int64 i, bool c_in, float[1,4] v_in) => (bool c_out, float[1,4] v_out)"
        " { c_out = Identity(c_in) v_out = Identity(v_in) }> }"
    )


def endless_layers() -> onnx.ModelProto:
    return parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1,1,4] x) => (float[1,1,4] y)'
        " <bool go = {1}, float[1,1,1] w = {0.5}, float[1] one = {1}, float[1] two = {2}> {"
        " y = Loop (, go, x) <body = b (int64 i, bool c_in, float[1,1,4] v_in) => (bool c_out, float[1,1,4] v_out)"
        " { c_out = Identity(c_in) z = Conv(v_in, w) v_out = BatchNormalization(z, two, one, one, one) }> }"
    )


def test_a_loop_without_end_in_onnxruntime() -> None:
    started = time.monotonic()
    with pytest.raises(VerificationError, match=r"did not end within 0\.5 s") as caught:
        verify(endless(), endless(), device="cpu", timeout_s=0.5)
    assert "--timeout" in caught.value.hint
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("way", ["fold", "fold_files", "result"])
def test_a_loop_without_end_in_a_region_that_was_folded(way: str, tmp_path: Path) -> None:
    """The exact gate is the first to run it."""
    path = tmp_path / "m.onnx"
    onnx.save(endless_layers(), path)
    started = time.monotonic()
    if way == "fold":
        words = ["fold", str(path), "-o", f"{path}.onnx", "--device", "cpu", "--timeout", "0.5"]
        said = str(CliRunner().invoke(app, words).exception)
    elif way == "fold_files":
        (outcome,) = bnfold.fold_files(path, tmp_path / "out", timeout_s=0.5, device="cpu")
        said = str(outcome.error)
    else:
        with pytest.raises(VerificationError) as caught:
            bnfold.fold(path).verify(timeout_s=0.5, device="cpu")
        said = str(caught.value)
    assert "did not end within 0.5 s" in said
    assert time.monotonic() - started < 20


@pytest.fixture
def interruption() -> Iterator[threading.Timer]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts without one
    yield threading.Timer(1, _thread.interrupt_main)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("run", [verify, bnfold.benchmark])
def test_a_loop_without_end_is_interrupted(run: Callable[..., object], interruption: threading.Timer) -> None:
    interruption.start()
    with pytest.raises(KeyboardInterrupt):
        run(endless(), endless(), device="cpu")


def test_a_run_that_was_interrupted_has_ended(interruption: threading.Timer) -> None:
    """A process that ends while the runtime still runs is aborted."""
    stopped, ended = threading.Event(), threading.Event()

    def run() -> None:
        stopped.wait(60)
        time.sleep(0.2)
        ended.set()

    interruption.start()
    with pytest.raises(KeyboardInterrupt):
        limits.run_apart(run, stopped.set)
    assert ended.is_set()


def test_a_loop_without_end_in_torch() -> None:
    torch = pytest.importorskip("torch")

    class Endless(torch.nn.Module):
        def forward(self, x):
            while True:
                try:
                    x = x + 1
                except Exception:  # noqa: BLE001
                    continue

    model = Endless().eval()
    with pytest.raises(VerificationError, match=r"did not end within 0\.5 s"):
        verify(model, model, example_inputs=(torch.ones(2),), device="cpu", timeout_s=0.5)


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_is_positive(limit: float) -> None:
    with pytest.raises(UsageError, match="time limit"):
        verify(endless(), endless(), device="cpu", timeout_s=limit)


def test_what_ends_in_time_is_left_alone() -> None:
    assert limits.run_here(lambda: 1) == 1
    assert limits.run_apart(lambda: 7, lambda: None) == 7
    with pytest.raises(ZeroDivisionError):
        limits.run_apart(lambda: 1 // 0, lambda: None)
    with pytest.raises(ZeroDivisionError):
        limits.run_here(lambda: 1 // 0)
    assert threading.active_count() < 10


def test_a_run_that_takes_all_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_of_all", lambda: 1 << 20)
    stopped = threading.Event()
    with pytest.raises(VerificationError, match="takes all the memory that is left"):
        limits.run_apart(lambda: stopped.wait(60), stopped.set)


def test_a_run_under_a_profiler_ends() -> None:
    """Python 3.11 never ends a call once an exception was taken back that nobody had raised."""
    with cProfile.Profile():
        assert limits.run_here(lambda: 1) == 1
        assert sorted([2, 1]) == [1, 2]


def test_a_limit_that_comes_just_too_late_raises_nothing() -> None:
    for _ in range(300):
        with contextlib.suppress(VerificationError), limits.limited_to(0.0005):
            limits.run_here(lambda: time.sleep(0.0004))
        sum(range(100))


@pytest.mark.parametrize("shape", ["1000000,3,64,64", "1048576,3,1048576,1048576"])
def test_inputs_that_no_memory_holds(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_left", lambda: 2**30)
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[{shape}] x) => (float[a,b,c,d] y) {{ y = Relu(x) }}'
    )
    with pytest.raises(VerificationError, match=r"input 'x'.* would take .* GB, and 1\.1 GB of memory are left"):
        verify(model, model, device="cpu")


def test_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    assert 0 < memory.memory_left() <= sys.maxsize
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
    assert memory.memory_left() == 0


def test_the_runtime_has_as_many_threads_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = onnxruntime.InferenceSession

    def session(model: object, options: onnxruntime.SessionOptions, **others: object) -> onnxruntime.InferenceSession:
        made.append(options.intra_op_num_threads)
        return real(model, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }'
    )
    for threads, expected in ((None, 0), (3, 3)):
        made.clear()
        verify(model, model, device="cpu", samples=1, threads=threads)
        assert set(made) == {expected}
    for threads in (0, -1):
        with pytest.raises(UsageError, match="threads is"):
            verify(model, model, device="cpu", threads=threads)


def test_torch_has_as_many_threads_as_are_allowed_and_then_its_own_again() -> None:
    torch = pytest.importorskip("torch")
    seen: list[int] = []

    class Network(torch.nn.Module):
        def forward(self, x: object) -> object:
            seen.append(torch.get_num_threads())
            return x

    before = torch.get_num_threads()
    verify(Network().eval(), Network().eval(), example_inputs=(torch.zeros(1, 2),), device="cpu", samples=1, threads=3)
    assert set(seen) == {3}
    assert torch.get_num_threads() == before
