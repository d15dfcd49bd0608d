"""Lets test modules import the helpers beside this file: zoo, oracle, light_models and what they need.

At the end of the search path, so that a test folder such as tests/onnx can never hide the library of that name.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
