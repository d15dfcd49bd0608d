"""The sites gate for PyTorch: two programs come in, and the measured difference of every changed region goes out.

What that amounts to is for `bnfold.verification.judging` to say.
"""
