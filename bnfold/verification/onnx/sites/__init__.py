"""The sites gate for ONNX: two graphs come in, a model that measures every changed region goes out, and its results.

What that amounts to is for `bnfold.verification.judging` to say.
"""
