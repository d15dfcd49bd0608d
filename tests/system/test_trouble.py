"""What the machine is short of is said as that, wherever in an exception it stands; the rest is a bug of ours."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError

from bnfold.errors import BnfoldError, ModelLoadError, UsageError
from bnfold.system.trouble import explained
from bnfold.verification.runtime.sessions import FailureKind, RuntimeFailure, failure_of

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"


def caused(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except Exception as raised:  # noqa: BLE001
        return raised


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOMEM, "x"), "not enough memory"),
        (RuntimeError("can't start new thread"), "not enough memory"),
        (DecodeError("Error parsing message with type 'onnx.ModelProto': Arena alloc failed"), "not enough memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "not enough memory"),
        (ImportError("Exception caught: std::bad_alloc"), "not enough memory"),
        (OSError(errno.EMFILE, "x"), "Too many files"),
        (ImportError("libx.so: Too many open files"), "Too many files"),
        (caused(ImportError("read this for advice"), ImportError("libx.so: cannot allocate memory")), "enough memory"),
    ],
)
def test_what_a_process_is_short_of(error: Exception, says: str) -> None:
    found = explained(error)
    assert isinstance(found, ModelLoadError)
    assert says in str(found)


def test_ours_stays_and_a_bug_says_where() -> None:
    error = UsageError("no")
    assert explained(error) is error
    found = explained(caused(ImportError("no such module"), KeyError("x")))
    assert type(found) is BnfoldError
    assert "a bug in bnfold" in str(found)
    assert "test_trouble.py" in str(found)


def test_a_runtime_without_memory_for_its_threads() -> None:
    for message in (
        "pthread_create failed, error code: 12",
        "can't start new thread",
        "initialization: std::bad_alloc",
    ):
        assert isinstance(failure_of(RuntimeError(message)), MemoryError)
    found = failure_of(RuntimeError("bad tensor"))
    assert isinstance(found, RuntimeFailure)
    assert found.kind is FailureKind.REJECTED


FEW = """
import os, resource, sys
from bnfold.errors import BnfoldError
from bnfold.system.trouble import explained
import bnfold
model, folder = sys.argv[1:]
bnfold.fold(model).save(f"{folder}/o.onnx")
os.unlink(f"{folder}/o.onnx")
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
used = len(os.listdir("/proc/self/fd")) - 1
done = 0
for more in range(12):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, most))
    said = ""
    try:
        bnfold.fold(model).save(f"{folder}/o.onnx")
    except Exception as error:
        said = explained(error)
        assert said.exit_code in (3, 5) and "oo many" in str(said), said
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(sorted(os.listdir(folder)), said)
    assert os.listdir(folder) == ([] if said else ["o.onnx"])
    done += not said
    if not said:
        os.unlink(f"{folder}/o.onnx")
assert done
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts its files in /proc")
def test_few_file_handles_leave_nothing_behind(tmp_path: Path) -> None:
    words = [sys.executable, "-c", FEW, str(SAMPLE), str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
