"""Lets test modules import the helpers of tests/support (networks, random models, oracles) and planted faults.

At the end of the search path, so that a folder can never hide the library of that name. Scripts import this file for
the same.
"""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent
sys.path += [str(TESTS / folder) for folder in ("support", "support/networks", "support/random", "verification")]


def pytest_configure() -> None:
    """One thread each: tests run side by side, and small networks wait for threads longer than they compute."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
