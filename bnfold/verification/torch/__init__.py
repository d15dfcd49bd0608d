"""The verification of PyTorch models, and of ONNX files made of them: both models come in, a report goes out.

What a difference amounts to is for `bnfold.verification.judging` to say.
"""

from bnfold.extras import require

require("torch", "a PyTorch model")
