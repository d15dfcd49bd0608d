"""The search: a neutral graph comes in, and a plan of folds, merges and leftovers goes out.

It is pure: it changes no model, and knows neither torch nor onnx nor files.
"""
