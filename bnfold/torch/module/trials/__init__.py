"""Other sizes of the inputs: a fold of a module comes in with its examples, and a call comes out with which the two differ.

It runs copies of both, and knows nothing of graphs and plans.
"""
