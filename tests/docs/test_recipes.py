"""The code on the pages runs as it stands: Python, and what is typed for `bnfold`; pages say what they show."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bnfold.cli.main import app
from torch import nn
from typer.testing import CliRunner

import bnfold

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/python.md", "docs/pytorch.md", "docs/recipes.md", "docs/pipelines.md", "docs/verdict.md")

LARGE = ("Hugging Face, torchvision, timm", "YOLO")
"""Sections whose code takes more than a few seconds."""


def make_net():
    """A network of which pages say nothing more."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def blocks(page):
    """The code under each heading of a page: its language and text, in order."""
    text = (ROOT / page).read_text("utf-8")
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        found = re.findall(r"^```(python|sh)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        code = [(language, code) for language, code in found if not code.startswith("python3 -m venv")]
        if code:
            heading = part.splitlines()[0]
            yield pytest.param(code, id=f"{page}: {heading}", marks=[pytest.mark.slow] if heading in LARGE else [])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the pages take for granted: the sample, what a fold of it wrote, its images, and this folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "samples/digits_resnet.onnx", "model.onnx")
    for name in ("digits_test_images.npy", "digits_test_labels.npy"):
        shutil.copy(ROOT / "samples" / name, name)
    bnfold.fold("model.onnx").save("folded.onnx")
    bnfold.fold(make_net().eval(), (torch.zeros(1, 3, 64, 64),)).save("net.safetensors")
    return tmp_path


def type_in(line):
    done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
    assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", [part for page in PAGES for part in blocks(page)])
def test_the_code_of_a_page_runs(folder, code):
    names = {"torch": torch, "np": np, "net": make_net(), "make_net": make_net}
    for language, text in code:
        if language == "python":
            exec(compile(text, "page", "exec"), names)
        else:
            for line in text.splitlines():
                if line.startswith("bnfold "):
                    type_in(re.split(r" \|+ ", line)[0])


def picture():
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs/picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(svg):
    """What a picture says; see `words_of`."""
    lines = re.findall(r"<text [^>]*?y=\"([\d.]+)\"[^>]*>(.*?)</text>", svg)
    text = " ".join(part for _, part in lines if part != "bnfold").replace("&#160;", " ")
    return words_of(text)


def words_of(text):
    """The words of a text without figures of one run, and how many regions and sites a gate finds."""
    counted = re.sub(r"\d+(?: of \d+)? (changed regions|sites)", r"… \1", text)
    return re.sub(r"\d+\.\d+(e-\d+)?", "…", counted).split()


def test_the_picture_says_what_the_command_says(tmp_path, monkeypatch):
    module = picture()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples").mkdir()
    shutil.copy(ROOT / "samples/digits_resnet.onnx", "samples")
    said = CliRunner().invoke(app, [*shlex.split(module.COMMAND)[1:], "--device", "cpu"]).stdout
    assert words(module.picture(said)) == words(module.PICTURE.read_text("utf-8"))
    assert "http" not in module.PICTURE.read_text("utf-8").replace("http://www.w3.org/2000/svg", "").replace(
        "https://www.textualize.io", ""
    )
    shown = re.findall(r"^    (pass: .*\n(?:      .*\n)+)", (ROOT / "docs/verdict.md").read_text("utf-8"), re.MULTILINE)
    assert " ".join(words_of(shown[0])) in " ".join(words(module.PICTURE.read_text("utf-8")))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert module.COMMAND in readme
    assert "docs/terminal.svg" in readme


def test_a_picture_of_something_else_is_found():
    module = picture()
    assert words(module.picture("BatchNorms 14 0")) != words(module.picture("BatchNorms 14 1"))
    assert words(module.picture("12 sites, worst")) != words(module.picture("12 layers, worst"))
    assert words(module.picture("worst 2.08 bounds")) == words(module.picture("worst 2.10 bounds"))


def test_the_first_two_commands_of_the_readme_are_one_line_each():
    found = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for command in found[:2]:
        assert command.startswith("python3 -m venv .venv && ")
        assert command.count("\n") == 1


def test_a_command_that_is_wrong_is_found(folder):
    with pytest.raises(AssertionError, match="no-such-option"):
        type_in("bnfold inspect model.onnx --no-such-option")
