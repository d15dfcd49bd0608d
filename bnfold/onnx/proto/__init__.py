"""Reading protobuf messages of ONNX: names, attributes, nesting, and walks over everything in a model.

Messages come in, names and messages go out; nothing here reads files or knows what an operator means.
"""
