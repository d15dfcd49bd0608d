"""Small models, one for each kind of move that random graphs seldom make."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx_fold import batch_norm, parse, random

_BN = "BatchNormalization"
_SQUARE = "float[2,4,4] x"
_IMAGE = "float[2,4,6,6] x"


def _constants() -> dict[str, np.ndarray]:
    ones, zeros = np.ones(4), np.zeros(4)
    shift_only = {"t_g": ones, "t_b": random(4, seed=5), "t_m": random(4, seed=6), "t_v": ones}
    raised = {"r_g": ones, "r_b": np.abs(random(4, seed=5)), "r_m": zeros, "r_v": ones}
    scale_only = {**batch_norm(4, "s"), "s_b": zeros, "s_m": zeros}
    negative = {**scale_only, "s_g": -np.abs(scale_only["s_g"])}
    return {
        **batch_norm(4, "p"),
        **batch_norm(4, "q", seed=2),
        **batch_norm(2, "two"),
        **batch_norm(8, "eight"),
        **batch_norm(16, "many"),
        **shift_only,
        **raised,
        **scale_only,
        **{name.replace("s_", "n_"): array for name, array in negative.items()},
        "w": random(4, 4, 1, 1),
        "w2": random(4, 4, 1, 1, seed=2),
        "k": random(4, 4, 3, 3),
        "k2": random(4, 4, 2, 2),
        "g": random(4, 2, 1, 1),
        "one": random(1, 4, 1, 1, seed=3),
        "wide": random(4, 8, 1, 1),
        "deep": random(16, 4, 1, 1),
        "sixteen": random(16),
        "back": random(4, 16, 3, 3),
        "m": random(4, 4),
        "c": random(4, seed=9),
        "last": random(4, seed=4),
        "first": random(4, 1, 1, seed=4),
        "middle": random(1, 4, 1, seed=4),
        "channel": random(4, 1, 1, seed=8),
        "rows": random(4 * 64 * 96, 2),
    }


def _bn(prefix: str, value: str, attributes: str = "") -> str:
    return f"{_BN}{attributes} ({value}, {prefix}_g, {prefix}_b, {prefix}_m, {prefix}_v)"


_EXACTLY_ONE = "<epsilon = 0.0>"

_TEXTS = {
    "shift past Sub": (
        f"{_IMAGE}, float[2,4,6,6] h",
        f"a = Conv(x, w) d = Sub(h, a) y = {_bn('t', 'd', _EXACTLY_ONE)}",
    ),
    "shift past Sub forward": (
        f"{_IMAGE}, float[2,4,6,6] h",
        f"b = {_bn('t', 'x', _EXACTLY_ONE)} d = Sub(h, b) y = Conv(d, w)",
    ),
    "broadcast Add": (_IMAGE, f"a = Conv(x, w) o = Conv(x, one) d = Add(a, o) y = {_bn('s', 'd')}"),
    "gate": (f"{_IMAGE}, float[2,4,6,6] h", f"a = Conv(x, w) d = Mul(a, h) y = {_bn('p', 'd')}"),
    "product of maps": (_IMAGE, f"a = Conv(x, w) r = Relu(x) o = Conv(r, w2) d = Mul(a, o) y = {_bn('s', 'd')}"),
    "gate forward": (f"{_IMAGE}, float[2,4,6,6] h", f"b = {_bn('p', 'x')} d = Mul(b, h) y = Conv(d, w)"),
    "square": (_IMAGE, f"b = {_bn('s', 'x')} d = Mul(b, b) y = Conv(d, w)"),
    "quotient": (
        f"{_IMAGE}, float[2,4,6,6] h",
        f"a = Conv(x, w) e = Exp(h) f = Conv(e, w2) d = Div(a, f) y = {_bn('s', 'd')}",
    ),
    "denominator": (f"{_IMAGE}, float[2,4,6,6] h", f"b = {_bn('s', 'x')} d = Div(h, b) y = Conv(d, w)"),
    "negative behind Relu": (_IMAGE, f"a = Conv(x, w) r = Relu(a) y = {_bn('n', 'r')}"),
    "shift behind Relu": (_IMAGE, f"a = Conv(x, w) r = Relu(a) y = {_bn('r', 'r', _EXACTLY_ONE)}"),
    "channels in two axes": (_IMAGE, f"a = Conv(x, w) d = Reshape(a, halves) y = {_bn('two', 'd')}"),
    "Concat": (_IMAGE, f"a = Conv(x, w) b = Conv(x, w2) d = Concat<axis=1>(a, b) y = {_bn('eight', 'd')}"),
    "Concat forward": (
        f"{_IMAGE}, float[2,4,6,6] h",
        f"b = {_bn('p', 'x')} d = Concat<axis=1>(b, h) y = Conv(d, wide)",
    ),
    "SpaceToDepth": (_IMAGE, f"a = Conv(x, w) d = SpaceToDepth<blocksize=2>(a) y = {_bn('many', 'd')}"),
    "an output before": (_IMAGE, f"a = Conv(x, w) y = {_bn('p', 'a')}", "float[] a"),
    "an output behind": (_IMAGE, f"b = {_bn('p', 'x')} y = Conv(b, w)", "float[] b"),
    "Pad": (_IMAGE, f'a = Conv(x, w) d = Pad<mode="constant">(a, pads) y = {_bn("p", "d")}'),
    "pool that counts": (
        _IMAGE,
        f"a = Conv(x, w) d = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(a)"
        f" y = {_bn('p', 'd')}",
    ),
    **{
        f"{name} along the channels, {way}": (_SQUARE, text)
        for name, op in (
            ("pool", "AveragePool<kernel_shape=[3], pads=[1,1], count_include_pad=1>({})"),
            ("maximum", "MaxPool<kernel_shape=[3], pads=[1,1]>({})"),
            ("edge", 'Pad<mode="edge">({}, crop)'),
            ("pad", "Pad({}, crop)"),
        )
        for way, text in (
            ("backward", f"a = MatMul(x, m) d = {op.format('a')} y = Mul(d, positive)"),
            ("forward", f"a = Mul(x, positive) d = {op.format('a')} y = MatMul(d, m)"),
        )
    },
    "Transpose": (_SQUARE.replace("2,", "4,", 1), "a = MatMul(x, m) d = Transpose<perm=[1,2,0]>(a) y = Mul(d, first)"),
    "Transpose forward": (
        _SQUARE.replace("2,", "4,", 1),
        "a = Mul(x, middle) d = Transpose<perm=[1,2,0]>(a) y = MatMul(d, m)",
    ),
    "Flatten of open sizes": ("float[N,4,H,W] x", f"b = {_bn('s', 'x')} d = Flatten(b) y = MatMul(d, rows)"),
    "Gather": (_IMAGE, f"a = Conv(x, w) d = Gather<axis=1>(a, order) y = {_bn('p', 'd')}"),
    "Gather forward": (_IMAGE, f"b = {_bn('p', 'x')} d = Gather<axis=1>(b, order) y = Conv(d, w)"),
    "Gather twice": (_IMAGE, f"a = Conv(x, w) d = Gather<axis=1>(a, twice) y = {_bn('p', 'd')}"),
    "DepthToSpace": (_IMAGE, f"a = Conv(x, deep) d = DepthToSpace<blocksize=2>(a) y = {_bn('p', 'd')}"),
    "DepthToSpace CRD": (_IMAGE, f'a = Conv(x, deep) d = DepthToSpace<blocksize=2, mode="CRD">(a) y = {_bn("p", "d")}'),
    "padded border": (_IMAGE, f"b = {_bn('p', 'x')} y = Conv<pads=[1,1,1,1]>(b, k)"),
    "Gemm": ("float[2,4] x", f"b = {_bn('p', 'x')} y = Gemm<alpha=0.5, beta=2.0>(b, m, c)"),
    "Gemm backward": ("float[2,4] x", f"a = Gemm<alpha=0.5, beta=2.0, transB=1>(x, m, c) y = {_bn('p', 'a')}"),
    "grouped": (_IMAGE, f"b = {_bn('p', 'x')} y = Conv<group=2>(b, g)"),
    "Sub": (_IMAGE, f"a = Conv(x, w) d = Sub(a, channel) y = {_bn('p', 'd')}"),
    "Slice": (_IMAGE, "a = Conv(x, w) d = Slice(a, starts, ends, axes) e = Mul(d, two) y = Relu(e)"),
    "RepVGG": (
        _IMAGE,
        f"a = Conv<pads=[1,1,1,1]>(x, k) b = {_bn('p', 'a')} d = Conv(x, w) e = {_bn('q', 'd')} f = {_bn('s', 'x')}"
        " h = Add(b, e) y = Add(h, f)",
    ),
    "RepVGG with Sub": (
        _IMAGE,
        f"a = Conv<pads=[1,1,1,1]>(x, k) d = Conv(x, w) e = {_bn('q', 'd')} h = Sub(a, e) y = Sub(h, x)",
    ),
    "SAME_LOWER": (
        _IMAGE,
        'a = Conv<auto_pad="SAME_LOWER">(x, k2) d = Conv(x, w) y = Add(a, d)',
    ),
    "grouped branch": (_IMAGE, "a = Conv<pads=[1,1,1,1]>(x, k) d = Conv<group=2>(x, g) y = Add(a, d)"),
    "broadcast branches": ("float[2,4,3,3] x", "a = Conv(x, k) d = Conv(x, w) y = Add(a, d)"),
    "map less a larger one": (_IMAGE, "a = Conv<pads=[1,1,1,1]>(x, k) d = Conv(x, w) y = Sub(d, a)"),
    "chain with a padded bias": (_IMAGE, "a = Conv(x, deep, sixteen) y = Conv<pads=[1,1,1,1]>(a, back)"),
    "chain with a bias": (_IMAGE, "a = Conv(x, deep, sixteen) y = Conv(a, back)"),
    "chain with padding before": (_IMAGE, "a = Conv<pads=[1,1,1,1]>(x, deep) y = Conv(a, back)"),
    "affine and identity": (_IMAGE, f"b = {_bn('p', 'x')} d = Add(b, x) y = Relu(d)"),
    "negated sum": (_IMAGE, "a = Conv<pads=[1,1,1,1]>(x, k) d = Conv(x, w) e = Add(a, d) y = Sub(h0, e)"),
    "left over": (_IMAGE, f"b = {_bn('p', 'x')} y = Relu(b)"),
    "pool and map": (
        _IMAGE,
        "a = Conv<pads=[1,1,1,1]>(x, k)"
        " d = AveragePool<kernel_shape=[2,2], pads=[1,1,0,0], count_include_pad=1>(x) y = Add(a, d)",
    ),
}

_INTEGERS = {
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "crop": np.array([0, 0, 1, 0, 0, -1]),
    "order": np.array([2, 0, 3, 1]),
    "halves": np.array([2, 2, 2, 6, 6]),
    "twice": np.array([0, 0, 1, 2]),
    "starts": np.array([1]),
    "ends": np.array([3]),
    "axes": np.array([1]),
}


def networks() -> Iterator[tuple[str, onnx.ModelProto]]:
    """Each model with its name, in float32."""
    constants = {name: array.astype(np.float32) for name, array in _constants().items()}
    constants |= {
        "positive": np.array([0.5, 2, 3, 0.7], np.float32),
        "two": np.array([[[2.5]], [[-0.4]]], np.float32),
        "h0": np.zeros(1, np.float32),
    }
    for name, (inputs, body, *outputs) in _TEXTS.items():
        model = parse(f"g ({inputs}) => ({', '.join(['float[] y', *outputs])}) {{ {body} }}")
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
        read = {value for node in model.graph.node for value in node.input}
        held = {**constants, **_INTEGERS}
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(array, key) for key, array in held.items() if key in read
        )
        yield name, model
