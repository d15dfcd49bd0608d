"""Carries a plan out on an ONNX model: a model and a plan come in, the same model changed goes out.

It asks no questions: whatever could say no has said it while planning.
"""
