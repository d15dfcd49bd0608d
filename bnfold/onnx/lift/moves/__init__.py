"""Which row of the rule table each ONNX operator has: one node comes in, its row and parameters go out.

Nothing here decides where an affine goes.
"""
