"""Small tensors stand for large ones in these tests: more than a kilobyte of data stays in its file."""

import pytest

from bnfold.onnx.file import skeleton


@pytest.fixture(autouse=True)
def _by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "BY_REFERENCE_NBYTES", 1024)
