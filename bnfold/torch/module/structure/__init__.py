"""What a fold changes in a module apart from numbers: edits come in, and what a fresh module needs goes out, and back.

It must not know how a state dict is stored.
"""
