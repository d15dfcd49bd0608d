"""ONNX models through the public function: what is fed, what is refused, what is said; no times are asserted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser
from small_networks import folded, original, random_layers

import bnfold
from bnfold.errors import DeviceError, ModelLoadError, UsageError, VerificationError
from bnfold.latency import benchmarking, onnx_runner
from bnfold.latency.timing import Round
from bnfold.verification import InputSpec
from bnfold.verification.runtime.devices import Device, cpu_device

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"
SHORT_S = 0.001


def benchmark(one, other, **options):
    return bnfold.benchmark(one, other, **{"device": "cpu", "seconds": SHORT_S, **options})


def text(body):
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {body}')


@pytest.fixture
def pair():
    layers = random_layers(2)
    return original(layers), folded(layers)


def test_a_result_says_what_was_measured_where(tmp_path):
    bnfold.fold(SAMPLE).save(tmp_path / "folded.onnx")
    timing = benchmark(SAMPLE, tmp_path / "folded.onnx", batch=(1, 3), threads=1, seed=7)
    assert (timing.original, timing.folded) == (str(SAMPLE), str(tmp_path / "folded.onnx"))
    setting = timing.setting
    assert (setting.runtime, setting.used, setting.provider) == ("onnxruntime", "cpu", "CPUExecutionProvider")
    assert (setting.requested, setting.fell_back, setting.threads, setting.tf32) == ("cpu", None, 1, False)
    assert setting.name == cpu_device().name
    assert [comparison.batch for comparison in timing.comparisons] == [1, 3]
    assert [comparison.inputs[0].shape for comparison in timing.comparisons] == [(1, 1, 8, 8), (3, 1, 8, 8)]
    for comparison in timing.comparisons:
        for latency in (comparison.original, comparison.folded):
            assert 0 < latency.min_s <= latency.q1_s <= latency.median_s <= latency.q3_s <= latency.max_s
        assert comparison.ratio.low <= comparison.ratio.median <= comparison.ratio.high


def test_the_document(pair):
    document = json.loads(benchmark(*pair, seed=3).to_json())
    assert document["schema"] == "bnfold.bench/1"
    assert document["verified"] is False
    assert document["original"] == "the original model"
    assert document["config"] == {"seed": 3, "seconds": SHORT_S}
    assert document["setting"]["optimizations"] == "all"
    (comparison,) = document["comparisons"]
    assert comparison["batch"] is None
    assert set(comparison["ratio"]) == {"median", "low", "high", "confidence", "within_noise", "rounds"}
    assert set(comparison["original"]) == {"median_s", "q1_s", "q3_s", "min_s", "max_s", "calls"}


def test_figures_come_from_the_rounds(pair, monkeypatch):
    rounds = (Round((0.3, 0.3), (0.1, 0.1)), Round((0.4, 0.4), (0.2, 0.2)), Round((0.5, 0.5), (0.5, 0.5)))
    monkeypatch.setattr(benchmarking, "interleave", lambda one, other, seconds: rounds)
    (comparison,) = benchmark(*pair).comparisons
    assert (comparison.original.median_s, comparison.folded.median_s) == (0.4, 0.2)
    assert comparison.ratio.median == 2.0
    assert comparison.ratio.rounds == pytest.approx((3.0, 2.0, 1.0))


def test_the_original_comes_first(pair, monkeypatch):
    """Both calls run the model that they stand for."""
    ran = []
    bind = onnx_runner._Deployed.bind

    def noted(deployed, feed):
        call, outputs = bind(deployed, feed)
        return lambda: (ran.append(deployed._label), call()), outputs

    def once(one, other, seconds):
        one(), other()
        return (Round((1.0, 1.0), (1.0, 1.0)),)

    monkeypatch.setattr(onnx_runner._Deployed, "bind", noted)
    monkeypatch.setattr(benchmarking, "interleave", once)
    benchmark(*pair)
    assert ran == ["the original model", "the folded model"]


def test_sessions_are_made_as_deployed_but_for_the_spinning(pair, monkeypatch):
    import onnxruntime

    made = []
    real = onnxruntime.InferenceSession

    def noted(model, options, **others):
        made.append((options, others))
        return real(model, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    benchmark(*pair, threads=1)
    for options, others in made[-2:]:
        assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert options.intra_op_num_threads == 1
        assert options.use_deterministic_compute is False
        assert others == {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}


def test_shapes_data_and_batch(pair):
    assert benchmark(*pair, shapes=[(None, InputSpec((2, 3, 16, 16)))]).comparisons[0].inputs[0].shape == (2, 3, 16, 16)
    sized = benchmark(*pair, shapes={"x": InputSpec((1, 3, 16, 16))}, batch=(4,))
    assert sized.comparisons[0].inputs[0].shape == (4, 3, 16, 16)
    data = {"x": np.ones((5, 3, 16, 16), np.float32)}
    assert benchmark(*pair, inputs=data).comparisons[0].inputs[0].source == "given"
    assert benchmark(*pair, inputs=[data]).comparisons[0].inputs[0].shape == (5, 3, 16, 16)
    with pytest.raises(UsageError, match="already has a batch size"):
        benchmark(*pair, inputs=data, batch=(1,))
    with pytest.raises(UsageError, match="2 samples were given"):
        benchmark(*pair, inputs=[data, data])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": (0,)}, "a batch size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"shapes": {"nope": InputSpec((1,))}}, "'nope', which is not an input"),
        ({"shapes": {"x": InputSpec((1, 3))}}, "given 2 dimensions"),
    ],
)
def test_arguments_are_checked(pair, options, words):
    with pytest.raises(UsageError, match=words):
        benchmark(*pair, **options)


ADD = text("g (float[n,3] x) => (float[n,3] y) { y = Add(x, x) }")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("g (float[n,3] x) => (float[n,3] z) { z = Add(x, x) }", "different outputs: y; z"),
        ("g (float[n,3] z) => (float[n,3] y) { y = Add(z, z) }", "different inputs: x; z"),
        (
            "g (float[n,3] x) => (float[n,1] y) { y = ReduceMean<axes=[1]>(x) }",
            r"'y' is a tensor\(float\) of shape \(1, 3\) in the original and a tensor\(float\) of shape \(1, 1\)",
        ),
        ("g (float[n,3] x) => (int64[n,3] y) { y = Cast<to=7>(x) }", r"and a tensor\(int64\) of shape \(1, 3\) in the"),
        ("g (float[n,3] x) => (float[n,3] y, float[n,3] w) { y = Add(x, x) w = Neg(x) }", "different outputs: y; y, w"),
    ],
)
def test_models_that_cannot_stand_for_each_other_are_refused(body, words):
    with pytest.raises(UsageError, match=words) as error:
        benchmark(ADD, text(body))
    assert error.value.exit_code == 2


def test_another_element_type_of_an_input_is_refused():
    other = text("g (double[n,3] x) => (float[n,3] y) { z = Add(x, x) y = Cast<to=1>(z) }")
    with pytest.raises(VerificationError, match="the folded model does not run in onnxruntime"):
        benchmark(ADD, other)


def test_a_fixed_batch_is_refused_with_a_way_out():
    fixed = text("g (float[1,3] x) => (float[1,3] y) { y = Add(x, x) }")
    with pytest.raises(UsageError, match=r"the batch size is fixed: .*'x' \(1, 3\)"):
        benchmark(fixed, fixed, batch=(1, 8))


def test_onnx_is_not_measured_against_torch(tmp_path):
    with pytest.raises(UsageError, match="not the models would be compared but the runtimes"):
        benchmark(ADD, tmp_path / "m.pt2")
    with pytest.raises(UsageError, match="the folded model is a int"):
        benchmark(ADD, 3)


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model at all")
    for one, other in (("missing.onnx", "bad.onnx"), ("bad.onnx", "missing.onnx")):
        with pytest.raises(ModelLoadError):
            benchmark(tmp_path / one, tmp_path / other)
    onnx.save(ADD, tmp_path / "good.onnx")
    with pytest.raises(ModelLoadError, match=r"bad\.onnx"):
        benchmark(tmp_path / "good.onnx", tmp_path / "bad.onnx")


def test_a_model_without_a_kernel_is_a_device_error():
    layers = random_layers(1, dtype="float64")
    with pytest.raises(DeviceError, match="the original model cannot run on CPUExecutionProvider"):
        benchmark(original(layers, dtype="float64"), folded(layers, dtype="float64"))


def test_cuda_never_falls_back_and_auto_says_why(pair, monkeypatch):
    def refuse():
        raise DeviceError("CUDA cannot be used: no driver")

    monkeypatch.setattr(onnx_runner, "cuda_device", refuse)
    monkeypatch.setattr(onnx_runner, "tensorrt_device", refuse)
    for device in ("cuda", "tensorrt"):
        with pytest.raises(DeviceError, match="no driver"):
            benchmark(*pair, device=device)
    setting = benchmark(*pair, device="auto").setting
    assert (setting.requested, setting.used) == ("auto", "cpu")
    assert setting.fell_back == "CUDA cannot be used: no driver"


def test_a_session_elsewhere_is_a_device_error(pair, monkeypatch):
    monkeypatch.setattr(onnx_runner, "cuda_device", lambda: Device("cuda", "CUDAExecutionProvider", "a GPU"))
    monkeypatch.setattr(onnx_runner, "check_device_works", lambda device: None)
    with pytest.raises(DeviceError):  # this onnxruntime has no CUDA, or no GPU
        benchmark(*pair, device="cuda")


def test_outputs_of_any_kind():
    many = text(
        "g (float[n,3] x) => (seq(float[n,3]) y, int64[m,2] z) { y = SequenceConstruct(x, x)"
        " nz = NonZero(x) z = Transpose<perm=[1,0]>(nz) }"
    )
    assert benchmark(many, many, batch=(2,)).comparisons[0].batch == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_inputs(dtype):
    model = text(f"g ({dtype}[n,3] x) => (float[n,3] y) {{ y = Cast<to=1>(x) }}")
    assert benchmark(model, model).comparisons[0].inputs[0].dtype == dtype


def test_a_model_in_memory_keeps_its_large_tensors():
    layers = random_layers(2, channels=64)  # 147 kB of weights are held by reference
    assert benchmark(original(layers), folded(layers)).comparisons


def test_progress_is_told_and_nothing_printed(pair, capfd):
    told = []
    benchmark(*pair, batch=(1, 2), progress=told.append)
    assert [words.split(" for ")[0] for words in told] == [
        "measuring both models with batch 1",
        "measuring both models with batch 2",
    ]
    assert capfd.readouterr() == ("", "")


def test_onnx_models_are_measured_without_torch(tmp_path):
    code = (
        f"import sys, bnfold; bnfold.benchmark({str(SAMPLE)!r}, {str(SAMPLE)!r}, device='cpu', seconds=0.01)\n"
        "print('TORCH', 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "TORCH False" in done.stdout


@pytest.mark.gpu
def test_on_a_gpu(pair):
    """Inputs and outputs stay there; needs CUDA."""
    timing = benchmark(*pair, device="cuda", batch=(1, 4))
    assert (timing.setting.used, timing.setting.provider) == ("cuda", "CUDAExecutionProvider")
    assert timing.setting.tf32
    outputs = onnx_runner._Deployed(onnx_runner.Source.of(pair[0], "original"), onnx_runner.cuda_device(), None)
    call, (output,) = outputs.bind({"x": np.ones((2, 3, 16, 16), np.float32)})
    call()
    assert output.shape == (2, 8, 16, 16)
