"""The verification of ONNX models: two models come in, a report goes out.

It knows nothing of plans: all that it compares are two files.
"""
