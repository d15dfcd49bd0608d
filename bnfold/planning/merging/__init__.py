"""Parallel branches, and maps in a row, that become one map: a graph comes in, junctions for the plan go out.

Like all of planning it knows neither torch nor onnx nor files.
"""
