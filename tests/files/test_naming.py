"""Which files there are to fold and where each goes; what would replace anything is refused."""

import os

import pytest

from bnfold.errors import ModelLoadError, UsageError
from bnfold.files.naming import places


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "in/a.onnx",
        "in/sub/a.onnx",
        "in/sub/deep/b.PT2",
        "in/notes.txt",
        "in/.bnfold-x/c.onnx",
        "other/a.onnx",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def found(paths, out_dir="out", *, recursive=False, force=False):
    return {place.source: place.destination for place in places(paths, out_dir, recursive=recursive, force=force)}


def test_a_file_keeps_its_name_and_one_of_a_folder_its_place(folder):
    assert found(["other/a.onnx"]) == {"other/a.onnx": "out/a.onnx"}
    assert found(["in"], recursive=True) == {
        "in/a.onnx": "out/a.onnx",
        "in/sub/a.onnx": "out/sub/a.onnx",
        "in/sub/deep/b.PT2": "out/sub/deep/b.PT2",
    }


def test_a_file_that_is_not_there_is_told_of_when_it_is_folded(folder):
    assert found(["none.onnx"]) == {"none.onnx": "out/none.onnx"}


def test_the_output_folder_is_no_input(folder):
    first = found(["in"], "in/folded", recursive=True)
    for destination in first.values():
        os.makedirs(os.path.dirname(destination), exist_ok=True)
        open(destination, "w").close()
    assert found(["in"], "in/folded", recursive=True) == first


def test_one_file_by_two_names_is_one(folder):
    os.symlink("a.onnx", "in/link.onnx")
    assert list(found(["in/a.onnx", "./in/a.onnx", "in/link.onnx"])) == ["in/a.onnx"]


@pytest.mark.parametrize(
    ("paths", "out_dir", "options", "says"),
    [
        (["in/a.onnx", "other/a.onnx"], "out", {}, "in/a.onnx and other/a.onnx would both go to out/a.onnx"),
        (["in", "other"], "out", {"recursive": True}, "would both go to"),
        (["in"], "out", {}, "in is a folder"),
        (["in"], "in", {"recursive": True}, "would replace in/a.onnx"),
        (["in/a.onnx"], "in", {}, "would replace in/a.onnx"),
        (["in/sub/a.onnx", "in/a.onnx"], "in", {"force": True}, "would both go to"),
        (["package.module:factory"], "out", {}, "is code"),
    ],
)
def test_what_would_be_replaced_is_refused(folder, paths, out_dir, options, says):
    with pytest.raises(UsageError, match=says):
        found(paths, out_dir, **options)


def test_a_file_may_be_replaced_by_its_own_fold_if_that_is_wanted(folder):
    assert found(["in/a.onnx"], "in", force=True) == {"in/a.onnx": "in/a.onnx"}
    os.symlink("in", "by_link")
    with pytest.raises(UsageError, match="would replace"):
        found(["in/a.onnx"], "by_link")


def test_a_destination_that_leads_to_another_input_is_refused(folder):
    os.makedirs("out")
    os.rename("other/a.onnx", "other/b.onnx")
    os.symlink("../other/b.onnx", "out/a.onnx")
    with pytest.raises(UsageError, match=r"the fold of in/a\.onnx would replace other/b\.onnx"):
        found(["in/a.onnx", "other/b.onnx"], "out", force=True)


def test_nothing_to_fold_is_said(folder):
    os.makedirs("empty")
    with pytest.raises(ModelLoadError, match=r"there is no \.onnx or \.pt2 file in empty"):
        found(["empty"], recursive=True)
    with pytest.raises(ModelLoadError, match="in what was given"):
        found([])
