"""Models and weights of PyTorch as files: paths and names of factories come in, modules and programs go out, and back.

Nothing here runs code from a file unless the caller trusts it, and nothing knows a plan.
"""
