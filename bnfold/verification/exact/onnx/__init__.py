"""The exact gate for ONNX: a model and its fold go in, what every region gave in onnxruntime comes out.

It cuts regions by the pairing of the sites gate, and knows nothing of rounding bounds or of the model's data.
"""
