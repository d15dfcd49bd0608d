"""onnxruntime and the devices it can use: a model comes in, a session that runs where it was asked to goes out.

It must not know that two models are compared.
"""
