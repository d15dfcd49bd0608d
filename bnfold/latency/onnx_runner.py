"""Two ONNX models in onnxruntime, as deployed: all graph optimisations, TF32 where the device has it.

Taking turns needs one option that a deployment does not. A session's threads go on spinning for some milliseconds
after a run, to be ready for the next, and so take the processors from the other session. Median latency in ms on two
cores, three processes each; "alone" has one session and no other:

    model (ms alone)             turns of one call     turns of ten          spinning stopped, turns of one and of ten
    ResNet-18 at 224 px (18.7)   35    37    35        19    18    17        18.4  17.3        18.6  18.0  18.4
    ResNet-18 at 64 px (3.1)     5.1   4.8   5.2       4.7   4.1   4.5       3.3   3.0   3.5   3.0   3.1   2.9
    digits sample (0.10)         0.115 0.177 0.115     0.113 0.116 0.115     0.123 0.189 0.125 0.139 0.176 0.126

So left alone, the figures are off by a factor of up to 2, and not by the same for both models. With
`session.force_spinning_stop` the threads stop when a run ends. That costs a wake-up of about 0.02 ms a call, which
shows in models of a tenth of a millisecond only; not spinning at all (`session.intra_op.allow_spinning=0`) costs it
between the operators as well: 0.14 ms for the sample.

What is left are calls that lost a processor to another program, with every thread of the operator waiting for one.
With four times as many programs at work as there are processors, up to 4 % of the calls of four pairs of equal models
took more than twice the median, the longest 131 times as long; the ratios were 0.992 to 0.999. A median of a block does
not see them, nor, where a block is one call, does the median over the rounds. What neither removes is a session that is
slower than its twin for as long as it lives: see `bnfold.latency.figures`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from bnfold.errors import BnfoldError, DeviceError, ModelLoadError, VerificationError
from bnfold.input_spec import name_shapes
from bnfold.latency.batches import with_batch
from bnfold.latency.pair import Output, Prepared, Setting, check_same_names, check_same_outputs, usable_cpus
from bnfold.latency.timing import Call
from bnfold.onnx.constant_costs import require_small_constants
from bnfold.onnx.lift.check import check
from bnfold.onnx.proto.normalise import normalise
from bnfold.verification.inputs.feeds import Feed, FeedRequest, make_feeds
from bnfold.verification.inputs.sampling import declared_inputs
from bnfold.verification.runtime.devices import Device, DeviceRequest, cpu_device, cuda_device, tensorrt_device
from bnfold.verification.runtime.limits import run_apart
from bnfold.verification.runtime.sessions import (
    FailureKind,
    RuntimeFailure,
    check_device_works,
    check_placement,
    failure_of,
    to_ort_value,
)
from bnfold.verification.runtime.source import Source

_SILENT = 4  # onnxruntime's severity FATAL: what goes wrong is raised, not written to standard error
_HOST, _GPU = "cpu", "cuda"  # what onnxruntime calls the memory of a device


class OnnxPair:
    """Two ONNX models, each in a session of its own.

    Args:
        original: The original.
        folded: The folded model.
        request: The device; only "auto" may take another than asked for.
        threads: Threads within an operator; None for what onnxruntime chooses.
        feeds: What the caller said about inputs.

    Raises:
        UsageError: The models have inputs or outputs of different names.
        ModelLoadError: A model cannot be read.
        VerificationError: onnxruntime refuses a model.
        DeviceError: The device cannot be used, or has no kernel for a model.
    """

    def __init__(
        self, original: Source, folded: Source, request: DeviceRequest, threads: int | None, feeds: FeedRequest
    ) -> None:
        import onnxruntime

        self._feeds = feeds
        self._declared = declared_inputs(original.skeleton().proto)
        for source in (original, folded):
            model = source.skeleton()  # says what is wrong with a file, and refuses one that reaches out of its folder
            check(model)
            normalise(model.proto)
            require_small_constants(model)
        device, fell_back = self._load(original, folded, request, threads)
        check_same_names("inputs", sorted(self._original.inputs), sorted(self._folded.inputs))
        check_same_names("outputs", self._original.outputs, self._folded.outputs)
        self.setting = Setting(
            runtime="onnxruntime",
            version=onnxruntime.__version__,
            requested=request.value,
            used=device.kind,
            name=device.name,
            provider=device.provider,
            fell_back=fell_back,
            tf32=device.kind == "cuda",
            threads=threads,
            cpus=usable_cpus(),
            optimizations="all",
        )

    def prepare(self, batch: int | None) -> Prepared:
        """See `Pair`."""
        request = self._feeds
        declared, shapes = self._declared, name_shapes(request.shapes, tuple(item.name for item in self._declared))
        if batch is not None:
            given = request.data[0] if request.data else {}
            declared, shapes = with_batch(declared, shapes, given, batch)
        with self._original.errors():
            samples, inputs = make_feeds(declared, replace(request, shapes=shapes), self._original.probe)
            call, outputs = self._original.bind(samples[0])
        with self._folded.errors():
            other_call, other_outputs = self._folded.bind(samples[0])
        check_same_outputs(outputs, other_outputs)
        return Prepared(inputs, call, other_call)

    def running(self) -> nullcontext[None]:
        """See `Pair`."""
        return nullcontext()

    def _load(
        self, original: Source, folded: Source, request: DeviceRequest, threads: int | None
    ) -> tuple[Device, str | None]:
        """Make both sessions; where they are, and why not on the GPU."""

        def load(device: Device) -> Device:
            check_device_works(device)
            self._original = _Deployed(original, device, threads)
            self._folded = _Deployed(folded, device, threads)
            return device

        if request is DeviceRequest.CPU:
            return load(cpu_device()), None
        if request is DeviceRequest.TENSORRT:
            return load(tensorrt_device()), None
        try:
            return load(cuda_device()), None
        except DeviceError as error:
            if request is DeviceRequest.CUDA:
                raise
            reason = str(error)
        return load(cpu_device()), reason


class _Deployed:
    """A model in a session with the runtime's own optimisations."""

    def __init__(self, source: Source, device: Device, threads: int | None) -> None:
        import onnxruntime

        self._label, self._device = source.label, device
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        model, injected = source.loadable()
        # onnxruntime may read injected values where they lie: arrays and wrappers live as long as this.
        self._kept = [(array, to_ort_value(array)) for array in injected.values()]
        if injected:
            options.add_external_initializers(list(injected), [value for _, value in self._kept])
        with self.errors():
            try:
                self._session = onnxruntime.InferenceSession(
                    model, options, providers=[device.provider], enable_fallback=0
                )
            except Exception as error:  # onnxruntime's errors have no common base of their own
                raise failure_of(error) from error
        check_placement(self._session, device)
        self.inputs = tuple(item.name for item in self._session.get_inputs())
        self.outputs = tuple(item.name for item in self._session.get_outputs())

    def probe(self, feed: Feed) -> None:
        """Run once, to see whether the model takes these inputs.

        Raises:
            RuntimeFailure: It does not.
        """
        self.bind(feed)

    def bind(self, feed: Feed) -> tuple[Call, tuple[Output, ...]]:
        """Put inputs on the device and run once; a call that runs again, and what the outputs are.

        Raises:
            RuntimeFailure: The model does not run on these inputs.
            VerificationError: It does not end.
        """
        import onnxruntime

        run_options = onnxruntime.RunOptions()
        run_options.log_severity_level = _SILENT
        session, binding = self._session, self._session.io_binding()
        memory = _HOST if self._device.kind == "cpu" else _GPU

        def call() -> None:
            session.run_with_iobinding(binding, run_options)
            binding.synchronize_outputs()

        def stop() -> None:
            run_options.terminate = True

        try:
            for name, array in feed.items():
                # Copies to the device here, once, and not in every run.
                binding.bind_ortvalue_input(name, to_ort_value(np.asarray(array, order="C")))
            for name in self.outputs:
                binding.bind_output(name, memory)
            binding.synchronize_inputs()
            run_apart(call, stop)
            values = binding.get_outputs()
        except BnfoldError:
            raise
        except Exception as error:
            raise failure_of(error) from error
        outputs = tuple(
            Output(name, value.data_type(), tuple(value.shape()) if value.is_tensor() else None)
            for name, value in zip(self.outputs, values, strict=True)
        )
        return call, outputs

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Say what it means that the runtime refuses this model."""
        try:
            yield
        except RuntimeFailure as failure:
            raise _meaning(failure, self._label, self._device) from failure


def _meaning(failure: RuntimeFailure, label: str, device: Device) -> BnfoldError:
    if failure.kind is FailureKind.UNREADABLE:
        return ModelLoadError(f"{label} cannot be loaded: {failure}")
    if failure.kind in (FailureKind.NO_KERNEL, FailureKind.DEVICE):
        return DeviceError(f"{label} cannot run on {device.provider}: {failure}")
    return VerificationError(f"{label} does not run in onnxruntime, so nothing can be measured: {failure}")
