"""What element types do to affines in an ONNX model: weights that are stored as integers, casts there and back.

In come single nodes with the constants of their graph, out go weights and positions. It knows no plan.
"""
