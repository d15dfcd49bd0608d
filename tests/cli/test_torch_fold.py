"""`bnfold fold`, `inspect` and `verify` for PyTorch, as a user meets them."""

import importlib.util
import io
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
nn = torch.nn

import onnxruntime  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import bnfold  # noqa: E402

HERE = Path(__file__).parent
QUICK = ("--device", "cpu", "--samples", "1")
IMAGE = ("--input", "1,3,8,8")

pytestmark = pytest.mark.usefixtures("factories")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with Net as m.pt2 (unfolded), m.onnx, and weights for it: made once."""
    folder = tmp_path_factory.mktemp("made")
    nets = _nets()
    net = nets.Net().eval()
    program = torch.export.export(net, (torch.ones(1, 3, 8, 8),))
    torch.export.save(program, folder / "m.pt2")
    bnfold.fold(program).save(folder / "m.onnx")
    save_file(net.state_dict(), folder / "w.safetensors")
    return folder


def _nets():
    spec = importlib.util.spec_from_file_location("nets", HERE / "torch_factories.py")
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    return nets


def module(name="Net"):
    """The original in float64, the oracle."""
    return getattr(sys.modules["nets"], name)().eval().double()


def expected(name, *inputs):
    with torch.no_grad():
        return module(name)(*(torch.from_numpy(item) for item in inputs))


def image(*shape, seed=5):
    return np.random.default_rng(seed).standard_normal(shape)


def ran(path, **feeds):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, feeds)
    return dict(zip([value.name for value in session.get_outputs()], outputs, strict=True))


def operators(path):
    return {node.op_type for node in onnx.load(path).graph.node}


def files():
    return sorted(path.name for path in Path().iterdir() if path.name not in ("nets.py", "__pycache__"))


def test_the_whole_road_to_onnx(run):
    """Factory → .onnx: no BN, runs in onnxruntime, equals eager in float64, names and axes as asked."""
    code, out, err = run("fold", "nets:Net", *IMAGE, "--dynamic", "image:0=batch", "-o", "out.onnx", "-v", *QUICK)
    assert (code, err) == (0, "")
    assert "1 BatchNorm: all folded" in out
    assert "bn -> conv (output)" in out
    assert out.startswith("pass: outputs match on CPU")
    assert files() == ["out.onnx"]
    model = onnx.load("out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "BatchNormalization" not in operators("out.onnx")
    sizes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert sizes == {"image": ["batch", 3, 8, 8], "logits": ["batch", 5], "pooled": ["batch", 8]}
    x = image(4, 3, 8, 8)
    found, wanted = ran("out.onnx", image=x.astype(np.float32)), expected("Net", x)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-5, atol=1e-5)
    assert str(Path.cwd()) not in Path("out.onnx").read_bytes().decode("latin-1")


@pytest.mark.slow
def test_two_inputs_by_name_and_in_order(run):
    words = ("--input", "scale:2", "--input", "2,3,8,8", "--dynamic", "image:0=n,2=height", "--dynamic", "scale:0=n")
    code, _, _ = run("fold", "nets:Net", *words, "-o", "out.onnx", *QUICK)
    assert code == 0
    x, scale = image(3, 3, 12, 8), image(3)
    found = ran("out.onnx", image=x.astype(np.float32), scale=scale.astype(np.float32))
    np.testing.assert_allclose(found["logits"], expected("Net", x, scale)["logits"].numpy(), rtol=1e-5, atol=1e-5)


def test_integers_with_a_range(run):
    code, _, _ = run(
        "fold", "nets:Tokens", "--input", "ids:2,7:int64", "--val-range", "ids:0,99", "-o", "o.onnx", *QUICK
    )
    assert code == 0
    ids = np.arange(14).reshape(2, 7)
    (found,) = ran("o.onnx", ids=ids).values()
    np.testing.assert_allclose(found, expected("Tokens", ids).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("pt", marks=pytest.mark.slow)])
def test_to_a_state_dict(run, suffix):
    code, out, _ = run("fold", "nets:Net", *IMAGE, "-o", f"out.{suffix}", *QUICK)
    assert code == 0
    assert out.startswith("pass: ")
    state = load_file("out.safetensors") if suffix == "safetensors" else torch.load("out.pt", weights_only=True)
    assert not [name for name in state if name.startswith("bn.")]
    original = sys.modules["nets"].Net().eval()
    folded = bnfold.fold(original, (torch.ones(1, 3, 8, 8),)).model
    folded.load_state_dict({name: tensor * 0 for name, tensor in state.items()})
    folded.load_state_dict(state)
    x = torch.from_numpy(image(2, 3, 8, 8))
    loaded = folded
    if suffix == "safetensors":
        loaded = bnfold.load_folded(sys.modules["nets"].Net(), "out.safetensors")
    for module in (folded, loaded):
        with torch.no_grad():
            found = module(x.float())["logits"]
        np.testing.assert_allclose(found, expected("Net", x.numpy())["logits"], rtol=1e-5, atol=1e-5)
    assert files() == [f"out.{suffix}"]


def test_from_a_program(run, made):
    shutil.copy(made / "m.pt2", "original.pt2")
    x = image(1, 3, 8, 8)
    with torch.no_grad():
        wanted = _nets().Net().eval().double()(torch.from_numpy(x))["logits"].numpy()
    for number, target in enumerate(("again.pt2", "again.onnx", "again.safetensors")):
        code, out, err = run("fold", "original.pt2", "-o", target, *QUICK)
        assert (target, code, err) == (target, 0, "")
        assert out.startswith("pass: ")
        assert len(files()) == 2 + number
    found = ran("again.onnx", image=x.astype(np.float32))["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    program = torch.export.load("again.pt2").module()
    np.testing.assert_allclose(program(torch.from_numpy(x).float())["logits"].detach(), wanted, rtol=1e-5, atol=1e-5)
    assert "bn.weight" not in load_file("again.safetensors")
    with pytest.raises(bnfold.ModelLoadError, match="was not written of a module") as refused:
        bnfold.load_folded(_nets().Net(), "again.safetensors")
    assert "not a program" in refused.value.hint
    assert run("verify", "original.pt2", "again.onnx", *QUICK)[0] == 0
    assert run("verify", "original.pt2", "again.pt2", *QUICK)[0] == 0
    assert run("inspect", "original.pt2", "--fail-on", "any")[0] == 1
    assert run("inspect", "again.pt2", "--fail-on", "any")[0] == 0


def saved_weights(path, **arguments):
    """Weights that are not those of the factory."""
    net = sys.modules["nets"].Net(**arguments)
    state = {name: tensor + 0.5 if tensor.is_floating_point() else tensor for name, tensor in net.state_dict().items()}
    if path.endswith(".pt"):
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    else:
        save_file(state, path)
    return state


@pytest.mark.parametrize("path", [pytest.param("w.safetensors", marks=pytest.mark.slow), "w.pt"])
def test_weights_and_arguments(run, path):
    run("inspect", "nets:Net", *IMAGE)
    state = saved_weights(path, width=6)
    words = ("nets:Net", "--kwargs", '{"width": 6}', "--weights", path, *IMAGE)
    code, _, err = run("fold", *words, "-o", "out.onnx", *QUICK)
    assert code == 0
    assert err == ("weights from " + str(Path(path).resolve()) + " under 'state_dict' without the prefix 'module.'\n"
                   if path == "w.pt" else "")  # fmt: skip
    net = sys.modules["nets"].Net(width=6).eval()
    net.load_state_dict(state)
    x = image(1, 3, 8, 8)
    with torch.no_grad():
        wanted = net.double()(torch.from_numpy(x))["logits"]
    np.testing.assert_allclose(ran("out.onnx", image=x.astype(np.float32))["logits"], wanted, rtol=1e-5, atol=1e-5)


def test_weights_that_do_not_fit(run):
    run("inspect", "nets:Net", *IMAGE)
    saved_weights("w.safetensors", width=6)
    code, out, err = run("fold", "nets:Net", "--weights", "w.safetensors", *IMAGE, "-o", "out.onnx")
    assert (code, out) == (3, "")
    assert "does not fit Net: 6 of another shape" in err
    assert "is 6, not 8" in err
    assert err.count("\n") == 1
    assert files() == ["w.safetensors"]


def test_a_pickled_module_needs_trust(run):
    run("inspect", "nets:Net", *IMAGE)
    torch.save(sys.modules["nets"].Net(), "whole.pt")
    code, _, err = run("fold", "nets:Net", "--weights", "whole.pt", *IMAGE, "-o", "out.pt")
    assert code == 3
    assert "--trust-pickle" in err
    code, _, _ = run("fold", "nets:Net", "--weights", "whole.pt", "--trust-pickle", *IMAGE, "-o", "out.pt", *QUICK)
    assert code == 0


def test_real_data(run):
    np.savez("data.npz", image=image(2, 3, 8, 8).astype(np.float32))
    code, out, _ = run("fold", "nets:Net", "--inputs", "data.npz", "-o", "out.pt2", "--device", "cpu", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["config"]["inputs"][0] == {
        "name": "image", "shape": [2, 3, 8, 8], "dtype": "float32", "dynamic": False, "source": "given"
    }  # fmt: skip
    np.savez("wrong.npz", picture=np.zeros(3, np.float32))
    code, _, err = run("fold", "nets:Net", "--inputs", "wrong.npz", "-o", "out.pt2")
    assert code == 2
    assert "'picture'" in err


def test_json(run, made):
    code, out, err = run("fold", "nets:noisy", *IMAGE, "-o", "out.onnx", *QUICK, "--json")
    report = json.loads(out)
    assert code == 0
    assert err == "building the model\n"
    assert report["schema"] == "bnfold.report/1"
    expected = {"path": "nets:noisy", "sha256": None, "format": "module", "bytes": 1180, "data_files": []}
    assert report["input"] == expected
    assert report["output"]["format"] == "onnx"
    assert len(report["output"]["sha256"]) == 64
    assert [fold["nodes"] for fold in report["folds"]] == [["bn"]]
    assert report["verdict"] == "pass"
    _, out, _ = run("fold", made / "m.pt2", "-o", "again.safetensors", "--json", "--no-verify")
    report = json.loads(out)
    assert (report["input"]["format"], report["output"]["format"]) == ("pt2", "safetensors")
    assert report["input"]["bytes"] == (made / "m.pt2").stat().st_size


@pytest.mark.parametrize("target", ["out.onnx", "out.safetensors"])
def test_require_all_and_dry_run_write_nothing(run, target):
    code, out, _ = run("fold", "nets:Kept", *IMAGE, "-o", target, "--require-all")
    assert code == 1
    assert "a BatchNorm is left, and --require-all was asked for" in out
    code, out, _ = run("fold", "nets:Net", *IMAGE, "-o", target, "--dry-run")
    assert code == 0
    assert "skipped: dry run" in out
    assert files() == []


@pytest.mark.parametrize(
    ("leftover", "kept"), [("conv", {"Conv", "Relu"}), ("mul-add", {"Conv", "Relu", "Mul", "Add"}),
                           ("keep", {"Conv", "Relu", "BatchNormalization"})]
)  # fmt: skip
def test_leftover_forms_in_onnx(run, leftover, kept):
    code, out, _ = run("fold", "nets:Kept", *IMAGE, "-o", "out.onnx", "--leftover", leftover, *QUICK)
    assert code == 0
    assert "1 BatchNorm: 0 folded, 1 left" in out
    assert "bn  [nonlinear]" in out
    assert operators("out.onnx") - {"Constant"} == kept
    x = image(1, 3, 8, 8)
    (found,) = ran("out.onnx", image=x.astype(np.float32)).values()
    np.testing.assert_allclose(found, expected("Kept", x).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("words", [pytest.param(("--skip", "second*"), marks=pytest.mark.slow), ("--only", "first*")])
def test_skip_and_only_hold_for_the_file_as_well(run, words):
    """torch.onnx would fold what was skipped, and so would the second fold."""
    code, out, _ = run("fold", "nets:TwoPairs", *IMAGE, "-o", "out.onnx", *words, *QUICK)
    assert code == 0
    assert "2 BatchNorms: 1 folded, 1 left" in out
    ops = [node.op_type for node in onnx.load("out.onnx").graph.node if node.op_type != "Constant"]
    assert ops == ["Conv", "Relu", "Conv", "BatchNormalization"]
    code, _, err = run("fold", "nets:TwoPairs", *IMAGE, "-o", "out.onnx", "--skip", "third*")
    assert code == 2
    assert "matches no BatchNorm" in err


def test_a_wrong_result_is_not_written(run, monkeypatch):
    from bnfold.algebra.linear_map import Folding

    right = Folding.bias
    monkeypatch.setattr(Folding, "bias", lambda self: None if right(self) is None else right(self) * 1.01)
    for target in ("out.onnx", "out.safetensors"):
        code, out, _ = run("fold", "nets:Net", *IMAGE, "-o", target, *QUICK)
        assert (target, code) == (target, 1)
        assert out.startswith("fail: ")
        assert "nothing was written" in out
    assert files() == []


def test_what_export_refuses_is_descended_for_a_state_dict(run):
    code, out, _ = run("fold", "nets:Branching", *IMAGE, "-o", "out.safetensors", *QUICK)
    assert code == 0
    assert "1 BatchNorm: all folded" in out
    code, _, err = run("fold", "nets:Branching", *IMAGE, "-o", "out.onnx")
    assert code == 3
    assert "torch.export refuses Branching" in err
    assert "Its part 'stem' can be exported: let the factory return that." in err
    assert ".safetensors" in err


@pytest.mark.parametrize("name", ["training", "instance", "wrapped"])
def test_eval_is_called(run, name):
    code, out, _ = run("inspect", f"nets:{name}", *IMAGE)
    assert code == 0
    assert "1 BatchNorm: all can be folded" in out


def test_inspect(run):
    code, out, _ = run("inspect", "nets:TwoPairs", *IMAGE)
    assert code == 0
    assert "first.1 -> first.0 (output)" in out
    assert "assumed" not in out
    assert "  forward is called with scale=None, as in the example\n" in run("inspect", "nets:Net", *IMAGE)[1]
    assert "  forward is called with scale=None, as in the example\n" in run("fold", "nets:Net", *IMAGE, "--dry-run")[1]
    assert run("inspect", "nets:TwoPairs", *IMAGE, "--fail-on", "foldable")[0] == 1
    code, out, _ = run("inspect", "nets:Kept", *IMAGE, "--json")
    assert json.loads(out)["left"][0]["code"] == "nonlinear"


@pytest.mark.slow
def test_verify_code_against_files(run):
    for target in ("out.onnx", "out.pt2", "out.safetensors"):
        run("fold", "nets:Net", *IMAGE, "-o", target, "--no-verify")
        code, out, _ = run("verify", "nets:Net", target, *IMAGE, *QUICK)
        assert (target, code) == (target, 0)
        assert "pass: " in out
    state = load_file("out.safetensors")
    state["conv.bias"][3] += 0.01
    save_file(state, "wrong.safetensors")
    code, out, _ = run("verify", "nets:Net", "wrong.safetensors", *IMAGE, *QUICK)
    assert code == 1
    assert "fail: " in out
    code, out, _ = run("verify", "nets:Net", "nets:training", *IMAGE, *QUICK)
    assert code == 0


@pytest.mark.slow
def test_verify_a_state_dict_with_bns_left_in(run):
    run("fold", "nets:TwoPairs", *IMAGE, "-o", "some.safetensors", "--only", "first*", "--no-verify")
    code, out, _ = run("verify", "nets:TwoPairs", "some.safetensors", *IMAGE, *QUICK)
    assert code == 0
    assert "pass: " in out


def test_verify_weights_are_those_of_the_original(run):
    run("inspect", "nets:Net", *IMAGE)
    saved_weights("w.safetensors")
    run("fold", "nets:Net", "--weights", "w.safetensors", *IMAGE, "-o", "out.onnx", "--no-verify")
    assert run("verify", "nets:Net", "out.onnx", "--weights", "w.safetensors", *IMAGE, *QUICK)[0] == 0
    assert run("verify", "nets:Net", "out.onnx", *IMAGE, *QUICK)[0] == 1


USAGE = [
    (("fold", "nets:Net", "-o", "out.pt2"), "no shape for image of Net.forward(image, scale=None)"),
    (("fold", "nets:Net", "--input", "picture:1,3,8,8", "-o", "out.pt2"), "'picture', which is not an input"),
    (("fold", "nets:Net", *IMAGE, *IMAGE, *IMAGE, "-o", "out.pt2"), "more shapes than inputs"),
    (("fold", "nets:Net", *IMAGE, "--kwargs", "{", "-o", "out.pt2"), "--kwargs is not JSON"),
    (("fold", "nets:Net", *IMAGE, "--kwargs", "[3]", "-o", "out.pt2"), "--kwargs is not a JSON object"),
    (("fold", "nets:Net", *IMAGE, "--kwargs", '{"depth": 3}', "-o", "out.pt2"), "cannot be called with depth"),
    (("fold", "nets:Net", *IMAGE, "--dynamic", "image", "-o", "out.pt2"), "is not NAME:AXIS=SIZE"),
    (("fold", "nets:Net", *IMAGE, "--dynamic", "image:7=n", "-o", "out.pt2"), "4 dimensions, so axis 7 cannot vary"),
    (("fold", "nets:Net", *IMAGE, "--dynamic", "scale:0=n", "-o", "out.pt2"), "'scale'"),
    (("fold", "nets:Net", *IMAGE, "--val-range", "scale:0,1", "-o", "out.pt2"), "'scale'"),
    (("fold", "nets:Net", *IMAGE, "--leftover", "gone", "-o", "out.pt2"), "leftover is 'gone'"),
    (("fold", "nets:Net", *IMAGE), "-o OUT is missing"),
    (("fold", "m.onnx", "--weights", "w.pt", "-o", "out.onnx"), "--weights is for a package.module:factory"),
    (("fold", "m.pt2", "--dynamic", "x:0=n", "-o", "out.onnx"), "--dynamic is for a package.module:factory"),
    (("verify", "m.pt2", "w.safetensors"), "is a state dict"),
]


@pytest.mark.parametrize(("words", "said"), USAGE)
def test_usage_errors(run, words, said):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert files() == []


LOADING = [
    (("nets:Nett", *IMAGE), "nets has no 'Nett'"),
    (("nobody:Net", *IMAGE), "no module 'nobody'"),
    (("nets:number", *IMAGE), "is of type int"),
    (("nets:failing", *IMAGE), "the weights are on another planet"),
    (("nets:leaving", *IMAGE), "SystemExit: 3"),
    (("nets:a_list", *IMAGE), "gave something of type list"),
    (("nets:Net", *IMAGE, "--weights", "nowhere.pt"), "does not exist"),
    (("missing.pt2",), "does not exist"),
    (("weights.pt",), "holds weights, but not the code"),
    (("damaged.pt2",), "not a complete archive of torch.export"),
]


@pytest.mark.parametrize(("words", "said"), LOADING)
def test_loading_errors(run, words, said):
    torch.save({"a": torch.ones(1)}, "weights.pt")
    Path("damaged.pt2").write_bytes(b"PK\x03\x04" + bytes(300))
    for command in (("fold", *words, "-o", "out.pt2"), ("inspect", *words)):
        code, out, err = run(*command)
        assert (command, code, out) == (command, 3, "")
        assert said in err
        assert err.count("\n") == 1
    assert files() == ["damaged.pt2", "weights.pt"]


OUTPUTS = [
    (("nets:Net", *IMAGE), "out.txt", ".pt2, .onnx, .safetensors or .pt"),
    (("nets:Net", *IMAGE), "nowhere/out.onnx", "does not exist"),
    (("nets:Net", *IMAGE), "folder.pt2", "is a folder"),
    (("m.pt2",), "m.pt2", "--force"),
    (("m.pt2",), "out.bin", ".pt2, .onnx, .safetensors or .pt"),
    (("m.onnx",), "out.pt2", ".onnx"),
    (("nets:Net", "--weights", "w.safetensors", *IMAGE), "w.safetensors", "--force"),
]


@pytest.mark.parametrize(("words", "target", "said"), OUTPUTS)
def test_output_errors(run, made, words, target, said):
    shutil.copytree(made, ".", dirs_exist_ok=True)
    Path("folder.pt2").mkdir()
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    code, _, err = run("fold", *words, "-o", target)
    assert code == 5
    assert said in err
    assert err.count("\n") == 1
    assert all(path.read_bytes() == data for path, data in before.items())


def test_output_over_input_with_force(run, made):
    shutil.copy(made / "m.pt2", "m.pt2")
    assert run("fold", "m.pt2", "-o", "m.pt2", "--force", *QUICK)[0] == 0
    assert files() == ["m.pt2"]


def test_help_imports_no_torch_for_any_command():
    for command in ("fold", "inspect", "verify"):
        script = (
            f"import sys; sys.argv = ['bnfold', '{command}', '--help']\n"
            "from bnfold.__main__ import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "print('HEAVY', sorted({'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert "HEAVY []" in done.stdout
        assert "package.module:factory" in done.stdout


def test_bench_measures_code_with_the_weights_that_were_folded_for_it(run):
    assert run("fold", "nets:Net", *IMAGE, "-o", "folded.safetensors", "--no-verify")[0] == 0
    code, out, _ = run("bench", "nets:Net", "folded.safetensors", *IMAGE, "--seconds", "0.01", "--json")
    assert code == 0
    (comparison,) = json.loads(out)["comparisons"]
    assert comparison["original"]["median_s"] > 0


def test_bench_takes_weights_only_for_code(run, made):
    code, _, error = run("bench", made / "m.pt2", made / "m.pt2", "--weights", made / "w.safetensors")
    assert (code, error.startswith("error: --weights is for a package.module:factory")) == (2, True)


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: {"epoch": 3, "ema": None, "model": module}])
def test_a_module_that_was_pickled_whole(run, wrap):
    shutil.copy("nets.py", "saved_nets.py")
    sys.path.insert(0, ".")
    torch.save(wrap(importlib.import_module("saved_nets").Net()), "whole.pt")
    sys.path.remove(".")
    del sys.modules["saved_nets"]
    code, out, _ = run("fold", "whole.pt", "--trust-pickle", *IMAGE, "-o", "out.onnx", *QUICK)
    assert code == 0
    assert "pass: outputs match" in out
    assert "BatchNormalization" not in {node.op_type for node in onnx.load("out.onnx").graph.node}
    assert run("fold", "whole.pt", "--trust-pickle", *IMAGE, "-o", "out.safetensors", *QUICK)[0] == 0
    assert run("verify", "whole.pt", "out.safetensors", "--trust-pickle", *IMAGE, *QUICK)[0] == 0
    assert run("verify", "whole.pt", "whole.pt", "--trust-pickle", *IMAGE, *QUICK)[0] == 0
    assert run("inspect", "whole.pt", "--trust-pickle", *IMAGE)[0] == 0
    del sys.modules["saved_nets"]


def test_a_pickle_is_loaded_only_on_request_and_never_replaced(run):
    Path("whole.pt").write_bytes(_pickle_of("nets", "Net"))
    before = Path("whole.pt").read_bytes()
    code, _, err = run("fold", "whole.pt", *IMAGE, "-o", "out.onnx")
    assert code == 3
    assert "--trust-pickle" in err
    assert "nets" not in sys.modules
    code, _, err = run("fold", "whole.pt", "--trust-pickle", *IMAGE, "-o", "whole.pt")
    assert code == 5
    assert "--force" in err
    code, _, err = run("fold", "whole.pt", "--trust-pickle", "--kwargs", '{"width": 3}', *IMAGE, "-o", "out.onnx")
    assert code == 2
    assert "--kwargs is for a package.module:factory" in err
    assert files() == ["whole.pt"]
    assert Path("whole.pt").read_bytes() == before


def test_a_pickle_without_its_code(run):
    Path("whole.pt").write_bytes(_pickle_of("nobody", "Net"))
    code, _, err = run("fold", "whole.pt", "--trust-pickle", *IMAGE, "-o", "out.onnx")
    assert code == 3
    assert "needs code that cannot be imported: No module named 'nobody'" in err
    assert err.count("\n") == 1


def _pickle_of(module, name):
    """What torch.save writes of an object of a class that need not exist."""
    buffer = io.BytesIO()
    made = types.ModuleType(module)
    setattr(made, name, type(name, (nn.Module,), {"__module__": module, "__qualname__": name}))
    sys.modules[module] = made
    try:
        torch.save(getattr(made, name)(), buffer)
    finally:
        del sys.modules[module]
    return buffer.getvalue()


def test_a_grid_that_a_detector_keeps_is_a_constant_of_the_file(run):
    code, out, err = run("fold", "nets:Grid", "--input", "1,3,8,8", "-o", "o.onnx", "--device", "cpu", "--samples", "1")
    assert (code, err) == (0, "")
    assert out.startswith("pass: ")
    assert "BatchNormalization" not in {node.op_type for node in onnx.load("o.onnx").graph.node}
