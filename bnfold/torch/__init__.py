"""The PyTorch front-end: a module or an exported program comes in, and a folded one with its plan goes out.

It must not know ONNX, but for the one file that exports to it, and decides nothing about where an affine goes.
"""

from bnfold.extras import require

require("torch", "a PyTorch model")
