"""package.module:factory: what is accepted, and what is said about everything else."""

import sys

import pytest

torch = pytest.importorskip("torch")

from bnfold.errors import ModelLoadError, UsageError  # noqa: E402
from bnfold.model_kind import is_import_path  # noqa: E402
from bnfold.torch.file.factory import build_module  # noqa: E402

CODE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x):
        return self.bn(x)


def make(width=4):
    return Net(width).train()


class Space:
    make = staticmethod(make)


def fails():
    raise KeyError("no such weights")


def leaves():
    raise SystemExit(3)


def says_nothing():
    class Silent(Exception):
        def __str__(self):
            raise ValueError("no words")

    raise Silent


def stays_in_training():
    module = Net()
    module.eval = lambda: 1 // 0
    return module


def holds_itself():
    module = Net()
    module._modules["self"] = module
    return module


class Lazy:
    def __getattr__(self, name):
        raise RuntimeError("not today")


lazy = Lazy()


def a_list():
    return [Net()]


def wrapped():
    return nn.DataParallel(Net())


instance = Net().train()
number = 7
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Makes a module that can be imported as `made_for_test`."""
    (tmp_path / "made_for_test.py").write_text(CODE)
    (tmp_path / "broken_for_test.py").write_text("import made_for_test\n1 / 0\n")
    (tmp_path / "needs_for_test.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("made_for_test", "broken_for_test", "needs_for_test"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["Net", "make", "instance", "Space.make", "wrapped"])
def test_classes_functions_and_instances_are_in_inference_mode(code, name):
    module = build_module(f"made_for_test:{name}")
    assert type(module).__name__ == "Net"
    assert not module.training
    assert not module.bn.training


def test_keyword_arguments(code):
    assert build_module("made_for_test:make", {"width": 9}).bn.num_features == 9


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("nowhere_at_all.models:make", ModelLoadError, "no module 'nowhere_at_all'"),
        ("made_for_test.models:make", ModelLoadError, "no module 'made_for_test.models'"),
        ("broken_for_test:make", ModelLoadError, "ZeroDivisionError: division by zero"),
        ("needs_for_test:make", ModelLoadError, "No module named 'a_module_that_nobody_has'"),
        ("made_for_test:mke", ModelLoadError, "made_for_test has no 'mke'"),
        ("made_for_test:number", ModelLoadError, "is of type int, neither an nn.Module nor a function"),
        ("made_for_test:fails", ModelLoadError, "KeyError: 'no such weights'"),
        ("made_for_test:leaves", ModelLoadError, "SystemExit: 3"),
        ("made_for_test:says_nothing", ModelLoadError, "failed: Silent$"),
        ("made_for_test:stays_in_training", ModelLoadError, "eval.. of what .* gives failed: ZeroDivisionError"),
        ("made_for_test:holds_itself", ModelLoadError, "eval.. of what .* gives failed: RecursionError"),
        ("made_for_test:lazy.make", ModelLoadError, "does not give 'lazy.make': RuntimeError: not today"),
        ("made_for_test:a_list", ModelLoadError, "gave something of type list, not an nn.Module"),
        ("made_for_test", UsageError, "no import path"),
        ("made_for_test:", UsageError, "no import path"),
    ],
)
def test_what_is_wrong_is_said(code, path, error, words):
    with pytest.raises(error, match=words):
        build_module(path)


def test_a_name_close_by_is_suggested(code):
    with pytest.raises(ModelLoadError) as caught:
        build_module("made_for_test:mke")
    assert "make" in caught.value.hint


def test_arguments_that_do_not_fit(code):
    with pytest.raises(UsageError, match=r"made_for_test:make\(width=4\) cannot be called with depth"):
        build_module("made_for_test:make", {"depth": 3})
    with pytest.raises(UsageError, match="takes no arguments"):
        build_module("made_for_test:instance", {"depth": 3})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torchvision.models:resnet50", True),
        ("models:Net.build", True),
        ("model.onnx", False),
        ("C:\\models\\net.onnx", False),
        ("folder/models:make", False),
        ("models:", False),
        (":make", False),
        ("1a:b", False),
    ],
)
def test_the_form_of_import_paths(text, expected):
    assert is_import_path(text) is expected
