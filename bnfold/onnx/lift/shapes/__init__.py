"""Shapes of the values of an ONNX model before it runs: a loaded model comes in, its skeleton with types comes out.

Runtimes are the judge: where onnx's inference gives other shapes than they compute, or believes what nobody has to keep
to, its skeleton says so in other words. Nothing here is planned, and no model is changed.
"""
