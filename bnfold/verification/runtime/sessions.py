"""onnxruntime sessions that run exactly what they were given, exactly where they were asked to.

Graph optimisations are off: onnxruntime folds BatchNorm itself, and comparing two folded models compares
nothing.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.errors import BnfoldError, DeviceError
from bnfold.input_spec import Array
from bnfold.verification.judging.structured_outputs import leaves
from bnfold.verification.runtime.devices import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER, Device
from bnfold.verification.runtime.limits import run_apart

if TYPE_CHECKING:
    import onnxruntime


_SILENT = 4  # onnxruntime's severity FATAL: what goes wrong is raised, not written to standard error
_PROVIDER_OPTIONS = {
    CPU_PROVIDER: {},
    CUDA_PROVIDER: {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"},
    TENSORRT_PROVIDER: {"trt_fp16_enable": "0", "trt_int8_enable": "0"},
}
_HEAVY_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
_OF_NUMPY = 1  # what dtype.isbuiltin says of NumPy's own types, the only ones that onnxruntime knows by itself
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ONNX_BFLOAT16 = 16
_UNKNOWN_TO_NUMPY = frozenset(
    f"tensor({name})" for name in "bfloat16 float8e5m2 float8e5m2fnuz float8e4m3fnuz int4 uint4 int2 uint2".split()
)
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_SOURCE_LOCATION = re.compile(r"/onnxruntime_src/\S+ .*?\) ")
_DEVICE_TROUBLE = re.compile(
    r"CUDA failure|CUDNN failure|CUBLAS failure|cudnn|Failed to allocate memory", re.IGNORECASE
)
_NO_MEMORY = re.compile("pthread_create failed|can't start new thread|std::bad_alloc")
"""Said where a thread gets no stack, or an object no place; a tensor that is too large is the model's own."""


class FailureKind(StrEnum):
    """Why the runtime refused a model."""

    UNREADABLE = "unreadable"
    NO_KERNEL = "no_kernel"
    DEVICE = "device"
    REJECTED = "rejected"


class RuntimeFailure(Exception):  # noqa: N818 - what it means is for the caller to say
    """onnxruntime could not load or run a model; the message is its first line, without its own prefixes."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Session:
    """A model loaded on a device, with graph optimisations off.

    Args:
        model: Path of the file, or the serialised model.
        device: Where every heavy node must run.
        injected: Values of those initializers of `model` that it declares as external data.
        in_order: Run nodes in the order of the file, which frees their results early, not in depth-first order.
        as_deployed: With the runtime's own optimisations, and TF32 where the device has it; not for a verdict.

    Raises:
        DeviceError: The session does not run on `device`.
        RuntimeFailure: onnxruntime refuses the model.
    """

    def __init__(
        self,
        model: str | bytes,
        device: Device,
        injected: Mapping[str, Array] | None = None,
        *,
        in_order: bool = False,
        as_deployed: bool = False,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        provider_options = dict(_PROVIDER_OPTIONS[device.provider])
        if as_deployed:
            provider_options |= {"use_tf32": "1"} if device.provider == CUDA_PROVIDER else {}
        else:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            # Threads that spin while they wait for work take a third of the processor time, and other processes' cores.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            # To plan which results share memory takes longer than in proportion to their number, and is for many runs.
            options.enable_mem_reuse = options.enable_mem_pattern = False
        options.intra_op_num_threads = device.threads or 0
        options.log_severity_level = _SILENT
        options.use_deterministic_compute = True
        if in_order:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # onnxruntime may read injected values where they lie: arrays and wrappers live as long as this.
        self._arrays = dict(injected or {})
        self._values = {name: to_ort_value(array) for name, array in self._arrays.items()}
        if self._values:
            options.add_external_initializers(list(self._values), list(self._values.values()))
        try:
            self._session = onnxruntime.InferenceSession(
                model,
                options,
                providers=[device.provider],
                provider_options=[provider_options],
                enable_fallback=0,
            )
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise failure_of(error) from error
        self.inputs = tuple(item.name for item in self._session.get_inputs())
        self.outputs = tuple(item.name for item in self._session.get_outputs())
        self.structured = frozenset(i.name for i in self._session.get_outputs() if not i.type.startswith("tensor("))
        self._speaks_numpy = not any(
            item.type in _UNKNOWN_TO_NUMPY for item in (*self._session.get_inputs(), *self._session.get_outputs())
        )
        self.nodes_elsewhere: tuple[str, ...] = ()
        self.nodes_per_provider = self._check_placement(device)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, object]:
        """Outputs by name, those of sequences, maps and optionals as the tensors that they hold; see `leaves`.

        Raises:
            RuntimeFailure: The model does not run on these inputs.
            VerificationError: It does not end in time.
        """
        import onnxruntime

        run_options = onnxruntime.RunOptions()
        run_options.log_severity_level = _SILENT

        def stop() -> None:
            run_options.terminate = True

        try:
            results = run_apart(lambda: self._results(feeds, run_options), stop)
        except BnfoldError:
            raise
        except Exception as error:
            raise failure_of(error) from error
        return leaves(dict(zip(self.outputs, results, strict=True)))

    def _results(self, feeds: Mapping[str, Array], run_options: onnxruntime.RunOptions) -> list[object]:
        if self._speaks_numpy:
            return list(self._session.run(None, dict(feeds), run_options))
        values = {name: to_ort_value(np.asarray(array, order="C")) for name, array in feeds.items()}
        return [_from_ort_value(value) for value in self._session.run_with_ort_values(None, values, run_options)]

    def _check_placement(self, device: Device) -> dict[str, int]:
        nodes, self.nodes_elsewhere = check_placement(self._session, device)
        return nodes


def check_placement(session: onnxruntime.InferenceSession, device: Device) -> tuple[dict[str, int], tuple[str, ...]]:
    """Nodes per provider, and those that run elsewhere than on `device`, from the session's own record.

    Args:
        session: Made with "session.record_ep_graph_assignment_info".
        device: Where it was asked to run.

    Raises:
        DeviceError: The session, or a heavy node of it, runs elsewhere.
    """
    head = session.get_providers()[0]
    if head != device.provider:
        raise DeviceError(f"onnxruntime gave a session on {head} where {device.provider} was asked for")
    nodes: Counter[str] = Counter()
    elsewhere = []
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            nodes[part.ep_name] += 1
            if part.ep_name == device.provider:
                continue
            elsewhere.append(f"{node.op_type} {node.name!r} on {part.ep_name}")
            if node.op_type in _HEAVY_OPS:
                raise DeviceError(
                    f"onnxruntime put {node.op_type} {node.name!r} on {part.ep_name} "
                    f"where {device.provider} was asked for",
                    hint=f"{device.provider} has no kernel for it; verify with --device cpu.",
                )
    return dict(nodes), tuple(elsewhere)


def check_device_works(device: Device) -> None:
    """Run one small convolution on `device`: some libraries, cuDNN among them, are opened only when needed.

    Raises:
        DeviceError: It does not run.
    """
    from onnx import parser

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        "probe (float[1,1,4,4] x, float[1,1,3,3] w) => (float[1,1,2,2] y) { y = Conv(x, w) }"
    )
    try:
        session = Session(model.SerializeToString(), device)
        result = session.run({"x": np.ones((1, 1, 4, 4), np.float32), "w": np.ones((1, 1, 3, 3), np.float32)})["y"]
    except RuntimeFailure as error:
        raise DeviceError(
            f"{device.provider} on {device.name} cannot run a convolution: {error}",
            hint="Check that CUDA and cuDNN fit the installed onnxruntime, or use --device cpu.",
        ) from error
    if not np.array_equal(np.asarray(result), np.full((1, 1, 2, 2), 9.0)):
        raise DeviceError(f"{device.provider} on {device.name} computes a wrong convolution")


def failure_of(error: Exception) -> RuntimeFailure | MemoryError:
    """What an exception of onnxruntime says, and of which kind it is; a lack of memory is no failure of a model."""
    kinds = {
        "NoSuchFile": FailureKind.UNREADABLE,
        "NoModel": FailureKind.UNREADABLE,
        "InvalidProtobuf": FailureKind.UNREADABLE,
        "NotImplemented": FailureKind.NO_KERNEL,
    }
    lines = str(error).strip().splitlines() or [type(error).__name__]
    message = _SOURCE_LOCATION.sub("", _PREFIX.sub("", lines[0])).strip()
    if _NO_MEMORY.search(message):
        return MemoryError(message)
    kind = kinds.get(type(error).__name__, FailureKind.REJECTED)
    if kind is FailureKind.REJECTED and _DEVICE_TROUBLE.search(message):
        kind = FailureKind.DEVICE
    return RuntimeFailure(kind, message)


def to_ort_value(array: Array) -> object:
    """An OrtValue on the CPU; it may share the array's memory."""
    import onnxruntime

    if array.dtype.isbuiltin == _OF_NUMPY:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    memory = array.view(np.uint16) if array.dtype == _BFLOAT16 else _in_bytes(array)
    data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(memory, data_type)


def _in_bytes(array: Array) -> Array:
    """An array of a type of at most 8 bits as bytes of its shape, as many of them as onnxruntime packs it into."""
    packed = np.frombuffer(numpy_helper.from_array(array).raw_data, np.uint8)
    memory = np.zeros(array.shape, np.uint8)
    memory.reshape(-1)[: len(packed)] = packed
    return memory


def _from_ort_value(value: object) -> object:
    """The array in an OrtValue on the CPU; floats of 8 bits as bytes, and integers of less in a byte each."""
    import onnxruntime

    if not isinstance(value, onnxruntime.OrtValue) or not value.is_tensor():
        return value
    if value.data_type() not in _UNKNOWN_TO_NUMPY:
        return value.numpy()
    shape, data_type = tuple(value.shape()), value.element_type()
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    if data_type == _ONNX_BFLOAT16:
        return np.frombuffer(data, dtype=_BFLOAT16).reshape(shape)
    if "float8" in value.data_type():
        return np.frombuffer(data, np.uint8).reshape(shape)
    packed = onnx.TensorProto(dims=shape, data_type=data_type, raw_data=data)
    return numpy_helper.to_array(packed).astype(np.int8)
