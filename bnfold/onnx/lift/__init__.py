"""From an ONNX model to the neutral graph: a loaded model comes in, nodes of a few kinds go out.

It classifies and decides nothing; it changes no model and knows no plan.
"""
