"""Two PyTorch models, eager, as deployed: inference mode, and the caller's own settings of TF32 and algorithms.

torch has one pool of threads, so models that take turns do not disturb each other as sessions of onnxruntime do. Other
programs do: the threads of an operator wait for each other by spinning, and where one of them has no processor, that
takes a slice of the scheduler's time. A small convolution took 0.13 ms on two idle processors and 16 ms on two of which
one was taken; with one thread it took 0.13 ms there as well.

A program is run as what `ExportedProgram.module()` makes of it, which walks from the module to each parameter at
every call: MobileOne-S0 in its deployment form, 88 parameters, took 3.54 ms on a tiny image as a module, 3.62 ms
exported, and 3.82 ms exported with names two levels deeper. By so much may a folded program, whose names are those of
the training form, be behind a module that computes the same.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from bnfold.errors import BnfoldError, DeviceError, UsageError, VerificationError
from bnfold.latency.pair import Output, Prepared, Setting, check_same_outputs, usable_cpus
from bnfold.latency.timing import Call
from bnfold.latency.torch_batches import Fed, repeated, request_for_program
from bnfold.verification.runtime.devices import DeviceRequest
from bnfold.verification.torch.run.devices import first_line, torch_device
from bnfold.verification.torch.run.flatten import flatten
from bnfold.verification.torch.run.sample import Sample
from bnfold.verification.torch.run.samples import SampleRequest, make_samples
from bnfold.verification.torch.run.subject import Subject

_OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class TorchPair:
    """Two PyTorch models on one device.

    Args:
        original: The original; a module that is on the device is run itself, not a copy.
        folded: The folded model.
        request: The device; only "auto" may take another than asked for.
        threads: Threads within an operator; None for what torch is set to.
        samples: What the caller said about inputs.

    Raises:
        UsageError: A module is in training mode, or TensorRT was asked for.
        DeviceError: CUDA was asked for and cannot be used.
    """

    def __init__(
        self,
        original: Subject,
        folded: Subject,
        request: DeviceRequest,
        threads: int | None,
        samples: SampleRequest,
    ) -> None:
        device, fell_back = torch_device(request)
        self._subject, self._samples, self._threads = original, samples, threads
        self._device = torch.device(device.kind)
        self._original = _Deployed(original, self._device)
        self._folded = _Deployed(folded, self._device)
        self.setting = Setting(
            runtime="torch",
            version=torch.__version__,
            requested=request.value,
            used=device.kind,
            name=device.name,
            provider=None,
            fell_back=fell_back,
            tf32=device.kind == "cuda" and torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]
            threads=threads or torch.get_num_threads(),
            cpus=usable_cpus(),
            optimizations="eager",
        )

    def prepare(self, batch: int | None) -> Prepared:
        """See `Pair`."""
        sample, inputs = self._fed(batch)
        call, outputs = self._original.bind(sample, batch)
        other_call, other_outputs = self._folded.bind(sample, batch)
        check_same_outputs(outputs, other_outputs)
        return Prepared(inputs, call, other_call)

    @contextmanager
    def running(self) -> Iterator[None]:
        """See `Pair`; the number of threads is put back at the end."""
        before = torch.get_num_threads()
        with ExitStack() as stack:
            if self._threads is not None:
                stack.callback(torch.set_num_threads, before)
                torch.set_num_threads(self._threads)
            stack.enter_context(torch.inference_mode())
            yield

    def _fed(self, batch: int | None) -> Fed:
        """What both models are called with at a batch size."""
        samples, inputs = make_samples(self._subject, self._samples)
        fed = samples[0], inputs
        if batch is None:
            return fed
        if self._subject.program is None:
            return repeated(fed, self._subject.label, batch)
        request = request_for_program(self._subject.program, self._samples, fed, batch)
        samples, inputs = make_samples(self._subject, request)
        return samples[0], inputs


class _Deployed:
    """A model on a device."""

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self._label, self._device = subject.label, device
        if subject.trains:
            raise UsageError(
                f"{self._label} is in training mode, in which it is not deployed", hint="Call .eval() on both."
            )
        try:
            self._module = _on_device(subject, device)
        except Exception as error:  # a module may hold whatever it likes
            raise VerificationError(f"{self._label} cannot be moved to {device}: {first_line(error)}") from error

    def bind(self, sample: Sample, batch: int | None) -> tuple[Call, tuple[Output, ...]]:
        """Put inputs on the device and run once; a call that runs again, and what the outputs are.

        Args:
            sample: The inputs.
            batch: The batch size that was asked for, or None.

        Raises:
            VerificationError: The model does not run on these inputs.
            UsageError: It does not with this batch size.
            DeviceError: They do not fit into its memory.
        """
        args, kwargs = sample.moved(self._device)
        wait = torch.cuda.synchronize if self._device.type == "cuda" else _do_nothing
        module = self._module

        def call() -> None:
            module(*args, **kwargs)
            wait()

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a model warns of is not about its speed
                result = module(*args, **kwargs)
            wait()
        except Exception as error:  # a model may raise whatever it likes
            raise self._meaning(error, batch) from error
        outputs = tuple(_output(name, value) for name, value in flatten(result).items())
        return call, outputs

    def _meaning(self, error: Exception, batch: int | None) -> BnfoldError:
        if isinstance(error, _OUT_OF_MEMORY):
            return DeviceError(f"{self._label} cannot run on {self._device}: {first_line(error)}")
        if batch is not None:
            return UsageError(
                f"{self._label} does not run with batch {batch}: {first_line(error)}",
                hint="Leave out the batch sizes that it does not take.",
            )
        return VerificationError(f"{self._label} does not run, so nothing can be measured: {first_line(error)}")


def _do_nothing() -> None:
    """On the CPU a result is there when a call returns."""


def _on_device(subject: Subject, device: torch.device) -> torch.nn.Module:
    """The module itself if it is there, else a copy."""
    if all(tensor.device.type == device.type for tensor in subject.state().values()):
        return subject.module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own copying uses what torch has deprecated
        if subject.program is None:
            return copy.deepcopy(subject.module).to(device)
        move = cast(Callable[[ExportedProgram, torch.device], ExportedProgram], move_to_device_pass)
        return cast(torch.nn.Module, move(copy.deepcopy(subject.program), device).module())


def _output(name: str, value: object) -> Output:
    shape = getattr(value, "shape", None)
    if shape is None:
        return Output(name, type(value).__name__, None)
    return Output(name, f"tensor of {getattr(value, 'dtype', '?')}", tuple(shape))
