"""The outputs gate for PyTorch: runs of both models come in, and what float64 says of them goes out.

What that amounts to is for `bnfold.verification.judging` to say.
"""
