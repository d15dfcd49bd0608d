"""The exact gate: what it proves, what it catches, what it says where it cannot prove anything."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import random_models
import random_rejoined
from onnx_fold import batch_norm, parse, random
from small_networks import original, random_layers

import bnfold
from bnfold.onnx.file.load import from_proto
from bnfold.onnx.fold import FoldOptions, fold_onnx
from bnfold.planning.plan import Leftover
from bnfold.report import Exact, Verdict
from bnfold.verification.exact.judging import judge
from bnfold.verification.exact.numbers import Numbers, small_epsilon
from bnfold.verification.exact.onnx.gate import check_onnx
from bnfold.verification.exact.onnx.running import Runner
from bnfold.verification.exact.onnx.stand_in import stand_in
from bnfold.verification.runtime.sessions import FailureKind, RuntimeFailure


def check(model: onnx.ModelProto, options: FoldOptions | None = None) -> Exact:
    options = options or FoldOptions()
    opened = from_proto(model)
    return check_onnx(opened, fold_onnx(opened, options), options)


def conv_bn(
    size: str = "N,3,H,W", *, pads: int = 1, dtype: str = "float", head: str = "y = Relu(z)"
) -> onnx.ModelProto:
    numpy_type = {"float": np.float32, "double": np.float64, "float16": np.float16}[dtype]
    constants = {"w": random(4, 3, 3, 3), "c": random(4)} | batch_norm(4, "p")
    text = f"g ({dtype}[{size}] x) => ({dtype}[n,c,p,q] y) {{ v = Conv<pads=[{pads},{pads},{pads},{pads}]>(x, w, c)"
    text += f" z = BatchNormalization(v, p_g, p_b, p_m, p_v) {head} }}"
    return parse(text, **{name: array.astype(numpy_type) for name, array in constants.items()})


def averaged(average: str, size: str, opset: int) -> onnx.ModelProto:
    """A Conv, an average over its output, and a BN."""
    text = f"g (float[1,3,{size}] x) => (float[n,c,p,q] y) {{ a = Conv<pads=[1,1,1,1]>(x, w, b)"
    text += f" m = {average} y = BatchNormalization(m, p_g, p_b, p_m, p_v) }}"
    constants = {"w": random(8, 3, 3, 3), "b": random(8)} | batch_norm(8, "p")
    axes = {"axes": np.array([2, 3])} if "axes)" in average else {}
    return parse(text, opset=opset, **{name: array.astype(np.float32) for name, array in constants.items()}, **axes)


def test_a_constant_in_another_form_is_the_same_node() -> None:
    head = (
        "low = Constant<value_float: float = -1.0>() high = Constant<value_float: float = 2.0>() y = Clip(z, low, high)"
    )
    model = conv_bn("1,3,8,8", head=head)
    folded = fold_onnx(from_proto(model), FoldOptions()).model.proto
    assert [given.name for node in folded.graph.node if node.op_type == "Constant" for given in node.attribute] == [
        "value",
        "value",
    ]
    found = check(model)
    assert (found.verdict, found.regions) == (Verdict.PASS, 1)


class TestNumbers:
    def test_signs_zeros_and_ones_stay(self) -> None:
        array = np.array([0.0, 1.0, -1.0, 0.3, -7.1, 1e-9, 0.3])
        small = Numbers(0).scales(array)
        assert np.array_equal(np.sign(small), np.sign(array))
        assert small[:3].tolist() == [0, 1, -1]
        assert small[3] == small[6]

    def test_a_number_becomes_the_same_wherever_it_stands(self) -> None:
        one, other = np.array([[0.25, 3.0]]), np.array([3.0])
        assert Numbers(1).scales(one)[0, 1] == Numbers(1).scales(other)[0]

    def test_seeds_differ(self) -> None:
        array = np.linspace(0.1, 5, 50)
        assert not np.array_equal(Numbers(0).shifts(array), Numbers(1).shifts(array))

    def test_divisors_are_powers_of_two(self) -> None:
        found = np.abs(Numbers(0).divisors(np.linspace(0.1, 5, 50)))
        assert np.array_equal(np.log2(found), np.round(np.log2(found)))

    def test_a_batch_norm_has_its_small_scale_and_shift(self) -> None:
        scale, shift = np.array([0.5, -2.0, 0.0, 1.0]), np.array([0.0, 0.1, -3.0, 0.1])
        epsilon = small_epsilon(1e-5)
        gamma, beta, mean, variance = Numbers(0).batch_norm(scale, shift, epsilon)
        assert np.array_equal(gamma / np.sqrt(variance + epsilon), Numbers(0).scales(scale))
        assert np.array_equal(beta - gamma / np.sqrt(variance + epsilon) * mean, Numbers(0).shifts(shift))

    @pytest.mark.parametrize(("shape", "groups"), [((8, 4, 3, 3), 1), ((4, 64), 1), ((12, 1, 5, 5), 12), ((64, 2), 1)])
    def test_a_weight_reaches_every_channel(self, shape: tuple[int, ...], groups: int) -> None:
        weight = Numbers(0).weight(shape, groups).reshape(shape[0], shape[1], -1)
        assert (weight != 0).any(axis=(1, 2)).all()
        assert (weight != 0).any(axis=(0, 2)).all()


@pytest.mark.parametrize("between", ["i = Identity(r)", "i = Dropout(r)", "h = Identity(r) i = Clip(h)"])
@pytest.mark.parametrize("start", ["r = Relu(x)", "r = Identity(x)"])
def test_what_a_region_begins_with_twice_is_fed_once(between: str, start: str) -> None:
    """The BN takes the skip over: what is behind the identity stays, and the original reads what is before it, too."""
    text = f"g (float[N,4,H,W] x) => (float[n,c,p,q] y) {{ {start} {between} "
    text += "z = BatchNormalization(i, p_g, p_b, p_m, p_v) a = Add(z, r) y = Relu(a) }"
    model = parse(text, opset=13, **{name: array.astype(np.float32) for name, array in batch_norm(4, "p").items()})
    assert check(model).verdict is Verdict.PASS
    opened = from_proto(model)
    folded = fold_onnx(opened, FoldOptions())
    assert folded.plan.merges


def test_sizes_that_a_weight_elsewhere_disproves_are_not_tried() -> None:
    """With one channel the Mul would make four of it: it is the Conv that says that there are four."""
    text = "g (float[N,C,H,W] x) => (float[n,c,p,q] y, float[n,c,p,q] z) { y = Conv(x, w) m = Mul(x, s)"
    text += " t = Tile(m, r) z = BatchNormalization(t, p_g, p_b, p_m, p_v) }"
    floats = {"w": random(2, 4, 1, 1), "s": random(4, 1, 1)} | batch_norm(8, "p")
    model = parse(text, r=np.array([1, 2, 1, 1]), **{name: array.astype(np.float32) for name, array in floats.items()})
    assert check(model).verdict is Verdict.PASS


class TestStandIn:
    def test_the_original_is_not_changed(self) -> None:
        model = from_proto(conv_bn())
        before = model.proto.SerializeToString(deterministic=True)
        stand_in(model, Numbers(0))
        assert model.proto.SerializeToString(deterministic=True) == before

    def test_epsilon_is_another_one_unless_it_is_zero(self) -> None:
        assert small_epsilon(0.0) == 0
        made = stand_in(from_proto(conv_bn()), Numbers(0))
        node = next(node for node in made.proto.graph.node if node.op_type == "BatchNormalization")
        assert [given.f for given in node.attribute if given.name == "epsilon"] == [small_epsilon(1e-5)] != [0]

    def test_a_shared_weight_stays_shared(self) -> None:
        text = (
            "g (float[1,4,5,5] x) => (float[1,4,5,5] y) { a = Conv(x, w) b = BatchNormalization(a, p_g, p_b, p_m, p_v)"
            " c = Relu(b) y = Conv(c, w) }"
        )
        constants = {"w": random(4, 4, 1, 1)} | batch_norm(4, "p")
        model = parse(text, **{name: array.astype(np.float32) for name, array in constants.items()})
        made = stand_in(from_proto(model), Numbers(0)).proto.graph.node
        assert made[0].input[1] == made[3].input[1] != "w"


class TestJudging:
    def test_zeros_of_either_sign_are_equal(self) -> None:
        assert judge(np.array([0.0, 1]), np.array([-0.0, 1]))[0] is Verdict.PASS

    def test_nan_equals_nan(self) -> None:
        assert judge(np.array([np.nan, np.inf]), np.array([np.nan, np.inf]))[0] is Verdict.PASS
        assert judge(np.array([np.nan, 1]), np.array([1.0, 1]))[0] is Verdict.FAIL

    def test_shapes_and_types_count(self) -> None:
        assert judge(np.ones((1, 2)), np.ones((2, 1)))[0] is Verdict.FAIL
        assert judge(np.ones(2, np.float32), np.ones(2))[0] is Verdict.FAIL

    def test_what_16_bits_do_not_hold_is_no_mistake(self) -> None:
        one, other = np.array([1000.0, 3]), np.array([1001.0, 3])
        assert judge(one, other)[0] is Verdict.FAIL
        assert judge(one, other, [np.dtype(np.float16)])[0] is Verdict.INCONCLUSIVE
        assert judge(one, one + 10, [np.dtype(np.float16)])[0] is Verdict.FAIL

    def test_rounding_is_no_mistake(self) -> None:
        assert judge(np.array([100.0, 1]), np.array([100.0, 1 + 1e-6]))[0] is Verdict.INCONCLUSIVE
        assert judge(np.array([100.0, 1]), np.array([100.0, 1.5]))[0] is Verdict.FAIL
        assert judge(np.array([100.0, 1]), np.array([100.0, 1.5]), exact=False)[0] is Verdict.INCONCLUSIVE
        assert judge(np.array([100.0, 1]), np.array([100.0]), exact=False)[0] is Verdict.FAIL


class TestGate:
    @pytest.mark.parametrize("leftover", list(Leftover))
    @pytest.mark.parametrize("dtype", ["float", "double", "float16"])
    def test_a_right_fold_is_proved_at_two_sizes(self, leftover: Leftover, dtype: str) -> None:
        found = check(conv_bn(dtype=dtype), FoldOptions(leftover=leftover))
        assert (found.verdict, found.regions, found.equal, found.sizes) == (Verdict.PASS, 1, 1, 2)

    @pytest.mark.parametrize("seed", range(3))
    def test_affines_that_16_bits_hold_together(self, seed: int) -> None:
        constants = {"w": random(4, 3, 3, 3), "b": random(4), "s": random(4, 1, 1, seed=seed), "t": random(4, 1, 1)}
        norms = {**batch_norm(3, "a", seed=seed), **batch_norm(4, "p", seed=seed)}
        model = parse(
            """g (float16[1,3,8,8] x) => (float16[n,c,p,q] y) {
            n = BatchNormalization(x, a_g, a_b, a_m, a_v) v = Conv(n, w, b)
            z = BatchNormalization(v, p_g, p_b, p_m, p_v) m = Mul(z, s) y = Add(m, t) }""",
            **{name: array.astype(np.float16) for name, array in {**constants, **norms}.items()},
        )
        assert check(model).verdict is Verdict.PASS

    def test_a_fixed_model_has_one_size(self) -> None:
        assert check(conv_bn("1,3,6,7")).sizes == 1

    def test_nothing_to_fold(self) -> None:
        model = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
        assert check(model) == Exact(Verdict.PASS)

    def test_sizes_that_the_model_refuses_are_passed_over(self) -> None:
        head = "shape = Constant<value_ints=[-1, 4, 224, 224]>() r = Reshape(z, shape) y = Relu(r)"
        found = check(conv_bn("N,3,H,W", head=head))
        assert (found.verdict, found.equal) == (Verdict.PASS, found.regions)
        assert found.equal > 0

    def test_a_bn_that_reads_a_shape(self) -> None:
        head = "s = Shape(z) flat = Reshape(z, s) y = Relu(flat)"
        assert check(conv_bn(head=head)).verdict is Verdict.PASS

    @pytest.mark.parametrize("average", ["GlobalAveragePool(a)", "ReduceMean<axes=[2,3]>(a)"])
    @pytest.mark.parametrize("seed", [2, 5, 6])
    def test_an_average_over_a_large_image(self, average: str, seed: int) -> None:
        text = "g (float[N,4,H,W] x) => (float[N,4,1,1] y) { a = Conv(x, w)"
        text += f" b = {average} c = BatchNormalization(b, p_g, p_b, p_m, p_v) y = Relu(c) }}"
        constants = {"w": random(4, 4, 1, 1, seed=seed)} | batch_norm(4, "p", seed=seed)
        found = check(parse(text, **{name: array.astype(np.float32) for name, array in constants.items()}))
        assert (found.verdict, found.equal) == (Verdict.PASS, 1), found.reason

    @pytest.mark.parametrize(
        ("opset", "average", "size"),
        [
            (17, "ReduceMean<axes=[2,3]>(a)", "75,75"),
            (18, "ReduceMean(a, axes)", "150,150"),
            (17, "GlobalAveragePool(a)", "512,1024"),
            (17, "AveragePool<kernel_shape=[75,75]>(a)", "H,W"),
            (17, "AveragePool<kernel_shape=[112,112], strides=[56,50]>(a)", "224,212"),
            (17, "AveragePool<kernel_shape=[50,49], pads=[5,6,7,8], strides=[3,1], count_include_pad=1>(a)", "56,52"),
        ],
    )
    def test_an_average_whose_sums_float32_does_not_hold(self, opset: int, average: str, size: str) -> None:
        found = check(averaged(average, size, opset))
        assert found.verdict is Verdict.PASS, found.reason

    def test_layers_behind_an_average(self) -> None:
        """The sample has an average with a linear layer behind it, whose sums float32 does not hold."""
        found = check(onnx.load(Path(__file__).parents[3] / "samples/digits_resnet.onnx"))
        assert (found.verdict, found.equal) == (Verdict.PASS, found.regions), found.reason

    @pytest.mark.parametrize(
        ("opset", "average", "size"),
        [
            (10, "AveragePool<kernel_shape=[75,75]>(a)", "75,75"),
            (17, "AveragePool<kernel_shape=[49,49], pads=[5,5,5,5]>(a)", "56,56"),
        ],
    )
    def test_what_is_not_exact_is_not_wrong(self, opset: int, average: str, size: str) -> None:
        """Before CumSum, large windows are in float32; and no number is divided by all that a border leaves of one."""
        found = check(averaged(average, size, opset))
        assert found.verdict is Verdict.INCONCLUSIVE
        assert "not exact" in found.reason

    @pytest.mark.parametrize(
        ("outputs", "tail"),
        [
            ("seq(float[n,c,p,q]) y", "y = SequenceConstruct(v, z)"),
            ("optional(float[n,c,p,q]) y", "y = Optional(z)"),
        ],
    )
    def test_outputs_that_are_no_tensors(self, outputs: str, tail: str) -> None:
        text = f"g (float[N,4,H,W] x) => ({outputs}) {{ u = Conv(x, w) v = BatchNormalization(u, p_g, p_b, p_m, p_v)"
        constants = {"w": random(4, 4, 1, 1)} | batch_norm(4, "p")
        model = parse(text + f" z = Relu(v) {tail} }}", **{n: a.astype(np.float32) for n, a in constants.items()})
        found = check(model)
        assert (found.verdict, found.equal) == (Verdict.PASS, 1)

    def test_a_sequence_inside_a_nested_graph(self) -> None:
        text = (
            "g (float[N,4,5,5] x, bool flag) => (float[m,4,5,5] y) { q = If(flag) <then_branch = t () =>"
            " (seq(float[k,4,5,5]) p) { a = Conv(x, w) b = BatchNormalization(a, p_g, p_b, p_m, p_v) c = Conv(b, w)"
            " p = SequenceConstruct(b, c) }, else_branch = e () => (seq(float[k,4,5,5]) r)"
            " { r = SequenceConstruct(x) }> y = ConcatFromSequence<axis=0>(q) }"
        )
        constants = {"w": random(4, 4, 1, 1)} | batch_norm(4, "p")
        model = parse(text, **{name: array.astype(np.float32) for name, array in constants.items()})
        assert check(model).verdict is Verdict.PASS

    def test_a_sparse_weight_beside_a_bn_that_stays(self) -> None:
        text = "g (float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) y = BatchNormalization(a, p_g, p_b, p_m, p_v) }"
        model = parse(text, **{name: array.astype(np.float32) for name, array in batch_norm(4, "p").items()})
        values = onnx.numpy_helper.from_array(random(2).astype(np.float32), "w")
        places = onnx.numpy_helper.from_array(np.array([1, 7]), "places")
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4, 4]))
        found = check(model, FoldOptions(leftover=Leftover.MUL_ADD))
        assert (found.verdict, found.regions, found.equal) == (Verdict.PASS, 1, 1)

    @pytest.mark.parametrize("reader", ["RandomUniformLike(b)", "RandomNormalLike(b)"])
    def test_what_draws_random_numbers_is_not_run(self, reader: str) -> None:
        text = (
            "g (float[N,4,5,5] x) => (float[N,4,5,5] y, float[n,4,5,5] r) { a = Conv<pads=[1,1,1,1]>(x, k)"
            f" b = Conv(x, w) s = Add(a, b) y = BatchNormalization(s, p_g, p_b, p_m, p_v) r = {reader} }}"
        )
        constants = {"k": random(4, 4, 3, 3), "w": random(4, 4, 1, 1)} | batch_norm(4, "p")
        found = check(parse(text, **{name: array.astype(np.float32) for name, array in constants.items()}))
        assert (found.verdict, found.equal) == (Verdict.INCONCLUSIVE, 1)
        assert "draws random numbers" in found.reason

    def test_inside_a_nested_graph(self) -> None:
        text = (
            "g (float[1,4,5,5] x, bool flag) => (float[1,4,5,5] y) { y = If(flag) <then_branch = t ()"
            " => (float[1,4,5,5] p) { a = Conv(x, w) p = BatchNormalization(a, p_g, p_b, p_m, p_v) },"
            " else_branch = e () => (float[1,4,5,5] q) { q = Relu(x) }> }"
        )
        constants = {"w": random(4, 4, 1, 1)} | batch_norm(4, "p")
        model = parse(text, **{name: array.astype(np.float32) for name, array in constants.items()})
        found = check(model)
        assert (found.verdict, found.regions) == (Verdict.PASS, 1)

    @pytest.mark.parametrize(("turns", "verdict"), [(2, Verdict.PASS), (72, Verdict.INCONCLUSIVE)])
    def test_numbers_that_grow_from_turn_to_turn(self, turns: int, verdict: Verdict) -> None:
        text = f"""agraph (float[{turns},2,4] x, float[2,4] s) => (float[2,4] f, float[{turns},2,4] y) {{
          f, y = Scan <num_scan_inputs = 1, body = step (float[2,4] before, float[2,4] now)
            => (float[2,4] after, float[2,4] out) {{
            a = Add (before, now) t = MatMul (a, w)
            after = BatchNormalization (t, p_g, p_b, p_m, p_v) out = Identity (after)
          }}> (s, x)
        }}"""
        constants = {"w": random(4, 4)} | batch_norm(4, "p")
        model = parse(text, **{name: array.astype(np.float32) for name, array in constants.items()})
        folded = fold_onnx(from_proto(model), FoldOptions())
        assert folded.plan.batch_norms_folded == 1
        assert check(model).verdict is verdict

    def test_a_merge_that_moves_terms_to_another_operand(self) -> None:
        """Both operands of the last Add change, and the first keeps the name of what it still is."""
        text = (
            "g (float[1,4,6,6] x) => (float[1,4,6,6] y) { r = Relu(x) t = ConvTranspose(r, w) m = Mul(t, s)"
            " a = Conv<pads=[1,1,1,1]>(r, k) b = Conv<pads=[1,1,1,1]>(r, k2) c = Conv<pads=[1,1,1,1]>(r, k3)"
            " d = Sum(m, a, b) e = Add(d, c) y = Relu(e) }"
        )
        arrays = {"w": random(4, 4, 1, 1), "s": random(4, 1, 1)}
        arrays |= {name: random(4, 4, 3, 3, seed=seed) for seed, name in enumerate(("k", "k2", "k3"))}
        model = parse(text, **{name: array.astype(np.float32) for name, array in arrays.items()})
        assert check(model).verdict is Verdict.PASS
        report = bnfold.fold(model).verify(device="cpu", samples=1)
        assert report.verdict is Verdict.PASS, report.reason

    def test_the_plan_has_to_be_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Numbers, "shifts", lambda _, array: np.ones(np.shape(array)))
        model = conv_bn(pads=1, head="f = Relu(z) d = Conv(f, w2) y = BatchNormalization(d, q_g, q_b, q_m, q_v)")
        zero = batch_norm(4, "q") | {"q_b": np.zeros(4), "q_m": np.zeros(4)} | {"w2": random(4, 4, 1, 1, seed=3)}
        for name, array in zero.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        found = check(model)
        assert found.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)
        if found.verdict is Verdict.INCONCLUSIVE:
            assert "small numbers do not give the same plan" in found.reason

    @pytest.mark.parametrize("seed", range(60))
    def test_random_graphs_are_equal(self, seed: int) -> None:
        for module in (random_models, random_rejoined):
            found = check(module.of_seed(seed))
            assert found.verdict is Verdict.PASS, found.reason


@pytest.mark.parametrize("weight", [(3, 5, 4), (1, 5, 4)])
def test_a_batch_of_matrices_on_the_left(weight: tuple[int, ...]) -> None:
    """Its channels are no first axes, so what is computed for it lies in memory in another order than its axes."""
    norm = "BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)"
    text = f"g (float[2,1,4,36] x) => (float[n,m,5,36] y) {{ c = MatMul (w, x) y = {norm} }}"
    constants = {"w": random(*weight), **batch_norm(weight[0])}
    found = check(parse(text, **{name: array.astype(np.float32) for name, array in constants.items()}))
    assert (found.verdict, found.regions) == (Verdict.PASS, 1), found.reason


class TestResult:
    def test_check_and_verify(self) -> None:
        model = conv_bn("1,3,6,7")
        result = bnfold.fold(model, check=True)
        assert result.check().verdict is Verdict.PASS
        report = result.verify(device="cpu", samples=1)
        assert report.verdict is Verdict.PASS
        assert report.to_dict()["exact"]["regions"] == 1
        assert "1 of 1 changed region exactly equal" in report.summary_line()
        assert report.timings_s["exact"] > 0


@pytest.mark.parametrize(("kind", "verdict"), [(FailureKind.DEVICE, "inconclusive"), (FailureKind.REJECTED, "fail")])
def test_a_region_for_which_memory_is_short_is_not_wrong(
    kind: FailureKind, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeFailure(kind, "Failed to allocate memory for requested buffer")

    result = bnfold.fold(original(random_layers(1)))
    monkeypatch.setattr(Runner, "compare", fails)
    assert result.check().verdict == verdict
