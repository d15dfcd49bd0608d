"""Judges differences: numbers that two runs gave come in, metrics and verdicts go out.

It knows neither torch nor onnx, and runs nothing.
"""
