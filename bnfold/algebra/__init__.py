"""Numbers and maps: affines, linear maps with constant weights, kernels, and rounding to a storage dtype.

Arrays come in and go out. Nothing here knows a graph, torch or onnx.
"""
