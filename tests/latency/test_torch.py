"""PyTorch models through the public function; no times are asserted."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import bnfold
from bnfold.errors import DeviceError, UsageError, VerificationError
from bnfold.latency import torch_runner
from bnfold.verification import InputSpec
from bnfold.verification.torch.run.subject import Subject

SHORT_S = 0.001


class Net(nn.Module):
    """Conv → BatchNorm, times a factor."""

    def __init__(self, out=4):
        super().__init__()
        self.conv = nn.Conv2d(3, out, 3)
        self.bn = nn.BatchNorm2d(out)
        self.grad_was_on = []

    def forward(self, x, *, factor=2):
        self.grad_was_on.append(torch.is_grad_enabled() or not torch.is_inference_mode_enabled())
        return {"y": self.bn(self.conv(x)) * factor}


def net(out=4):
    return Net(out).eval()


@cache
def program(*, dynamic=True):
    shapes = {"x": {0: torch.export.Dim("batch")}, "factor": None} if dynamic else None
    return torch.export.export(net(), (torch.randn(2, 3, 8, 8),), {"factor": 3}, dynamic_shapes=shapes)


def benchmark(one, other, **options):
    return bnfold.benchmark(one, other, **{"device": "cpu", "seconds": SHORT_S, **options})


@pytest.mark.parametrize(
    "inputs", [(torch.zeros(5, 3, 8, 8),), {"x": torch.zeros(5, 3, 8, 8)}, ((torch.zeros(5, 3, 8, 8),), {"factor": 4})]
)
def test_a_module_is_called_as_it_would_be(inputs):
    one, other = net(), net()
    timing = benchmark(one, other, inputs=inputs)
    assert (timing.original, timing.folded) == ("the original model", "the folded model")
    assert (timing.setting.runtime, timing.setting.version) == ("torch", torch.__version__)
    assert (timing.setting.provider, timing.setting.optimizations) == (None, "eager")
    assert timing.comparisons[0].inputs[0].shape == (5, 3, 8, 8)
    assert one.grad_was_on
    assert not any(one.grad_was_on + other.grad_was_on)
    assert not torch.is_inference_mode_enabled()


def test_a_program_and_its_batches():
    timing = benchmark(program(), program(), batch=(1, 4))
    assert [comparison.inputs[0].shape for comparison in timing.comparisons] == [(1, 3, 8, 8), (4, 3, 8, 8)]
    assert benchmark(program(), program()).comparisons[0].inputs[0].shape == (2, 3, 8, 8)
    given = benchmark(program(), program(), shapes={"x": InputSpec((7, 3, 8, 8))}).comparisons[0]
    assert given.inputs[0].shape == (7, 3, 8, 8)
    data = {"x": np.ones((3, 3, 8, 8), np.float32)}
    (info,) = benchmark(program(), program(), inputs=data).comparisons[0].inputs
    assert (info.shape, info.source) == ((3, 3, 8, 8), "given")


def test_files(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(program(), path)
    timing = benchmark(path, path, batch=(3,))
    assert timing.original == str(path)
    assert timing.comparisons[0].inputs[0].shape == (3, 3, 8, 8)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    wanted = before + 1
    assert benchmark(net(), net(), inputs=(torch.zeros(1, 3, 8, 8),), threads=wanted).setting.threads == wanted
    assert torch.get_num_threads() == before
    assert benchmark(net(), net(), inputs=(torch.zeros(1, 3, 8, 8),)).setting.threads == before


def test_the_callers_module_is_not_changed():
    one = net()
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    benchmark(one, one, inputs=(torch.randn(4, 3, 8, 8),))
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())


def test_training_mode_is_refused():
    with pytest.raises(UsageError, match="the folded model is in training mode"):
        benchmark(net(), net().train(), inputs=(torch.zeros(1, 3, 8, 8),))


def test_a_module_without_inputs_is_refused():
    with pytest.raises(UsageError, match="nothing tells what the original model can be called with"):
        benchmark(net(), net())


def test_a_module_takes_any_batch():
    one, seen = net(), []
    one.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    timing = benchmark(one, net(), inputs=((x,), {"factor": 4}), batch=(1, 5))
    assert [comparison.inputs[0].shape for comparison in timing.comparisons] == [(1, 3, 8, 8), (5, 3, 8, 8)]
    assert [comparison.batch for comparison in timing.comparisons] == [1, 5]
    assert torch.equal(seen[0], x[:1])
    five = seen[-1]
    assert torch.equal(five, torch.cat([x, x, x[:1]]))
    assert five.is_contiguous(memory_format=torch.channels_last)


def test_a_module_and_a_program_with_an_open_batch():
    timing = benchmark(net(), program(), inputs=((torch.zeros(1, 3, 8, 8),), {"factor": 3}), batch=(1, 4))
    assert [comparison.inputs[0].shape[0] for comparison in timing.comparisons] == [1, 4]
    inputs = ((torch.zeros(2, 3, 8, 8),), {"factor": 3})
    with pytest.raises(UsageError, match="the folded model does not run with batch 4: "):
        benchmark(net(), program(dynamic=False), inputs=inputs, batch=(2, 4))


class Scaled(nn.Module):
    """Two inputs, of which the second is a number for each image, or one for all."""

    def forward(self, x, scale):
        return x * scale.reshape(-1, 1)


def test_inputs_that_disagree_about_the_batch_are_refused():
    one, x = Scaled().eval(), torch.ones(4, 3)
    assert len(benchmark(one, one, inputs=(x, torch.ones(4)), batch=(3,)).comparisons) == 1
    assert len(benchmark(one, one, inputs=(x, torch.tensor(2.0)), batch=(3,)).comparisons) == 1
    with pytest.raises(UsageError, match="do not agree about the batch: in its first dimension 'x' has 4 and 'scale'"):
        benchmark(one, one, inputs=(x, torch.ones(1)), batch=(3,))


def test_inputs_without_rows_are_refused():
    one = nn.Identity().eval()
    for inputs in ((torch.tensor(1.0),), (torch.zeros(0, 3),)):
        with pytest.raises(UsageError, match="the original model has no input with rows"):
            benchmark(one, one, inputs=inputs, batch=(3,))


def test_a_module_that_fails_at_another_batch_is_refused():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1) @ torch.ones(12, 1)

    one, x = Fixed().eval(), torch.ones(2, 3, 4)
    assert len(benchmark(one, one, inputs=(x,), batch=(2,)).comparisons) == 1
    with pytest.raises(UsageError, match=r"the original model does not run with batch 3: \S") as error:
        benchmark(one, one, inputs=(x,), batch=(3,))
    assert error.value.exit_code == 2


def test_a_program_of_a_fixed_batch_is_refused():
    with pytest.raises(UsageError, match=r"the batch size is fixed: .*'x' \(2, 3, 8, 8\)"):
        benchmark(program(dynamic=False), program(dynamic=False), batch=(1,))
    with pytest.raises(UsageError, match="the data given for input 'x' already has a batch size"):
        benchmark(program(), program(), inputs={"x": np.ones((3, 3, 8, 8), np.float32)}, batch=(1,))


def test_the_module_of_a_program_is_not_in_training_mode():
    """It says that it is, and refuses `eval`."""
    made = program().module()
    assert made.training
    inputs = ((torch.zeros(2, 3, 8, 8),), {"factor": 3})
    assert len(benchmark(net(), made, inputs=inputs, batch=(2, 3)).comparisons) == 2
    with pytest.raises(UsageError, match="the original model is in training mode"):
        benchmark(torch.fx.symbolic_trace(nn.Sequential(nn.ReLU()).train()), made, inputs=inputs)


def test_several_samples_are_refused():
    with pytest.raises(UsageError, match="2 samples were given"):
        benchmark(net(), net(), inputs=[(torch.zeros(1, 3, 8, 8),), (torch.zeros(1, 3, 8, 8),)])


def test_other_outputs_are_refused():
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(UsageError, match=r"'y' is a tensor of float32 of shape \(1, 4, 6, 6\) in the original and a"):
        benchmark(net(), net(out=5), inputs=(x,))
    with pytest.raises(UsageError, match="different outputs: y; output"):
        benchmark(net(), net().conv, inputs=(x,))


def test_a_model_that_does_not_run_is_named():
    with pytest.raises(VerificationError, match=r"the folded model does not run, so nothing can be measured: \S"):
        benchmark(net(), nn.Conv2d(4, 4, 3).eval(), inputs=(torch.zeros(1, 3, 8, 8),))


def test_memory_that_does_not_suffice_is_a_device_error(monkeypatch):
    broken = net()

    def refuse(x):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(broken, "forward", refuse)
    with pytest.raises(DeviceError, match="the folded model cannot run on cpu: CUDA out of memory"):
        benchmark(net(), broken, inputs=(torch.zeros(1, 3, 8, 8),))


def test_devices_that_are_not_there():
    x = (torch.zeros(1, 3, 8, 8),)
    with pytest.raises(UsageError, match="do not run on tensorrt"):
        benchmark(net(), net(), inputs=x, device="tensorrt")
    if torch.cuda.is_available():
        pytest.skip("CUDA works here")
    with pytest.raises(DeviceError, match="CUDA cannot be used"):
        benchmark(net(), net(), inputs=x, device="cuda")
    setting = benchmark(net(), net(), inputs=x, device="auto").setting
    assert setting.used == "cpu"
    assert setting.fell_back.startswith("CUDA cannot be used")


def test_what_is_elsewhere_is_copied():
    """The device without data stands in for a GPU."""
    meta = torch.device("meta")
    one = net()
    moved = torch_runner._on_device(Subject.of(one, "original"), meta)
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in one.state_dict().values()} == {"cpu"}
    exported = program()
    moved = torch_runner._on_device(Subject.of(exported, "original"), meta)
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in exported.state_dict.values()} == {"cpu"}
    here = Subject.of(one, "original")
    assert torch_runner._on_device(here, torch.device("cpu")) is one


@pytest.mark.gpu
def test_on_a_gpu():
    """Copies run there, and the caller's models stay where they are; needs CUDA."""
    one, other = net(), program()
    assert benchmark(one, net(), inputs=(torch.zeros(1, 3, 8, 8),), device="cuda").setting.used == "cuda"
    assert next(one.parameters()).device.type == "cpu"
    timing = benchmark(other, program(), device="cuda", batch=(1, 4))
    assert [comparison.batch for comparison in timing.comparisons] == [1, 4]
    assert {tensor.device.type for tensor in other.state_dict.values()} == {"cpu"}
