"""Lets test modules import the helpers of tests/support (networks, random models, oracles) and planted faults.

At the end of the search path, so that a folder can never hide the library of that name. Scripts import this file for
the same.
"""

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path += [str(TESTS / folder) for folder in ("support", "support/networks", "support/random", "verification")]


def pytest_configure() -> None:
    """One thread each: tests run side by side, and small networks wait for threads longer than they compute."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where files of real networks are, for all tests and the processes that they run in: each is exported once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)
    return folder
