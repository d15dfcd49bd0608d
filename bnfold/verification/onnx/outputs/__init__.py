"""The outputs gate for ONNX: both models come in, and what their outputs and the rounding noise are goes out.

What that amounts to is for `bnfold.verification.judging` to say.
"""
