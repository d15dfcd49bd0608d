"""Lets test modules import the helpers of tests/support (networks, random models, oracles) and planted faults.

At the end of the search path, so that a folder can never hide the library of that name. Scripts import this file for
the same.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).parent
sys.path += [str(TESTS / folder) for folder in ("support", "support/networks", "support/random", "verification")]
