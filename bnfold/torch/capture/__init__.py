"""From a module and its example to exported programs: a module comes in, programs of it or of its parts go out.

It runs the module and torch.export, and must not know what is folded.
"""
