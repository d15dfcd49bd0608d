"""Operators for the oracle where onnx's reference evaluator is slow, or not right in float64.

Slow (nested Python loops): convolutions and pooling. They are computed here by PyTorch's own kernels, in the type
of the input. Not right: BatchNormalization before opset 14 normalises by the batch's statistics; Erf rounds to
float32; GroupNormalization computes in its `stash_type`; Mean does not broadcast its first input.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun
from scipy.special import erf
from torch import Tensor
from torch.nn import functional

Pads = list[tuple[int, int]]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps PyTorch on one thread: on networks this small two are slower, and many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _spatial_pads(
    auto_pad: str | None,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Pads:
    """The zeros before and after each spatial dimension (ONNX Conv, attributes `pads` and `auto_pad`)."""
    rank = len(kernel)
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        result = []
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
            small, large = total // 2, total - total // 2
            result.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
        return result
    pads = list(pads or [0] * (2 * rank))
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _tensor(array: np.ndarray) -> Tensor:
    """A copy, of views with negative strides (Slice) as well."""
    return torch.tensor(array.copy())


def _pad(x: Tensor, pads: Pads, value: float) -> Tensor:
    return functional.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


class Conv(OpRun):
    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray]:
        rank = x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        spatial = _spatial_pads(auto_pad, pads, x.shape[2:], weight.shape[2:], strides, dilations)
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
        y = convolve(
            _pad(_tensor(x), spatial, 0.0),
            _tensor(weight),
            None if bias is None else _tensor(bias),
            stride=strides,
            dilation=dilations,
            groups=group or 1,
        )
        return (y.numpy(),)


class ConvTranspose(OpRun):
    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        output_padding: list[int] | None = None,
        output_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray]:
        if output_shape or auto_pad not in (None, "NOTSET", "VALID"):
            raise NotImplementedError("ConvTranspose with output_shape or auto_pad")
        rank = x.ndim - 2
        pads = list(pads or [0] * (2 * rank))
        convolve = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
        y = convolve(
            _tensor(x),
            _tensor(weight),
            None if bias is None else _tensor(bias),
            stride=strides or [1] * rank,
            output_padding=output_padding or [0] * rank,
            dilation=dilations or [1] * rank,
            groups=group or 1,
        )
        # A pad of ConvTranspose takes rows away from the full result.
        negative = [(-before, -after) for before, after in zip(pads[:rank], pads[rank:], strict=True)]
        return (_pad(y, negative, 0.0).numpy(),)


def _pool(
    x: np.ndarray,
    attributes: dict[str, Any],
    value: float,
    reduce: Callable[[Tensor], Tensor],
) -> np.ndarray:
    """Reduces every window of x, padded with `value`, over its last dimension.

    Windows that `ceil_mode` adds start inside the padded input (ONNX MaxPool: a window that would start in the
    padding behind the input is dropped).
    """
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    strides = attributes.get("strides") or [1] * rank
    dilations = attributes.get("dilations") or [1] * rank
    pads = _spatial_pads(attributes.get("auto_pad"), attributes.get("pads"), x.shape[2:], kernel, strides, dilations)
    y = _pad(_tensor(x), pads, value)
    for axis in range(rank):
        dimension, extent = axis + 2, (kernel[axis] - 1) * dilations[axis] + 1
        free = y.shape[dimension] - extent
        count = free // strides[axis] + 1
        if attributes.get("ceil_mode"):
            count = -(-free // strides[axis]) + 1
            if (count - 1) * strides[axis] >= x.shape[dimension] + pads[axis][0]:
                count -= 1
        missing = max(0, (count - 1) * strides[axis] + extent - y.shape[dimension])
        after = [(0, missing if other == axis else 0) for other in range(rank)]
        starts = torch.arange(count) * strides[axis]
        offsets = torch.arange(kernel[axis]) * dilations[axis]
        padded = _pad(y, after, value)
        index = (starts[:, None] + offsets).reshape(-1)
        windows = padded.index_select(dimension, index).unflatten(dimension, (count, kernel[axis]))
        y = windows.movedim(dimension + 1, -1)
        y = reduce(y)
    return y.numpy()


class MaxPool(OpRun):
    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        if len(self.onnx_node.output) > 1:
            raise NotImplementedError("MaxPool with indices")
        return (_pool(x, attributes, -np.inf, lambda windows: windows.amax(-1)),)


class AveragePool(OpRun):
    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        sums = _pool(x, attributes, 0.0, lambda windows: windows.sum(-1))
        inside = np.ones((1, 1, *x.shape[2:]), x.dtype)
        if attributes.get("count_include_pad"):
            kernel = attributes["kernel_shape"]
            ones = [1] * len(kernel)
            pads = _spatial_pads(
                attributes.get("auto_pad"),
                attributes.get("pads"),
                x.shape[2:],
                kernel,
                attributes.get("strides") or ones,
                attributes.get("dilations") or ones,
            )
            inside = np.pad(inside, [(0, 0), (0, 0), *pads], constant_values=1)
            attributes = {**attributes, "pads": None, "auto_pad": None}
        return (sums / _pool(inside, attributes, 0.0, lambda windows: windows.sum(-1)),)


class BatchNormalization(OpRun):
    def _run(
        self,
        x: np.ndarray,
        gamma: np.ndarray,
        beta: np.ndarray,
        mean: np.ndarray,
        var: np.ndarray,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
        spatial: int = 1,
    ) -> tuple[np.ndarray, ...]:
        outputs: list[np.ndarray] = []
        if training_mode:
            axes = tuple(axis for axis in range(x.ndim) if axis != 1)
            batch_mean, batch_var = x.mean(axis=axes), x.var(axis=axes)
            outputs = [
                mean * momentum + batch_mean * (1 - momentum),
                var * momentum + batch_var * (1 - momentum),
            ]
            mean, var = batch_mean, batch_var
        # With spatial=0 (before opset 9) the parameters have the shape of one sample.
        shape = (1, *gamma.shape) if not spatial else (1, -1, *[1] * (x.ndim - 2))
        scale = gamma / np.sqrt(var + x.dtype.type(epsilon))
        y = (x - mean.reshape(shape)) * scale.reshape(shape) + beta.reshape(shape)
        return (y, *outputs)[: len(self.onnx_node.output)]


class Erf(OpRun):
    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (erf(x),)


class GroupNormalization(OpRun):
    def _run(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray,
        epsilon: float = 1e-5,
        num_groups: int = 1,
        stash_type: int = 1,
    ) -> tuple[np.ndarray]:
        groups = x.reshape(x.shape[0], num_groups, -1)
        centred = groups - groups.mean(axis=-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + x.dtype.type(epsilon))
        shape = (1, -1, *[1] * (x.ndim - 2))
        # Before opset 21 there is one scale a group instead of one a channel.
        per_channel = x.shape[1] // scale.shape[0]
        scale, bias = np.repeat(scale, per_channel), np.repeat(bias, per_channel)
        return (normal.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape),)


class Mean(OpRun):
    def _run(self, *values: np.ndarray) -> tuple[np.ndarray]:
        return (sum(values[1:], start=values[0]) / values[0].dtype.type(len(values)),)


OPERATORS = [Conv, ConvTranspose, MaxPool, AveragePool, BatchNormalization, Erf, GroupNormalization, Mean]
