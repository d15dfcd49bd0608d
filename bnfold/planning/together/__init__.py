"""Several affines that move as one: a graph and the affines that are still there come in, who moves with whom goes out.

Like all of planning it knows neither torch nor onnx nor files.
"""
