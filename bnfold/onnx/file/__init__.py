"""ONNX files: a path or a proto comes in as a skeleton whose weights stay where they are, and goes out as a file.

It knows the wire format, not what any operator means.
"""
