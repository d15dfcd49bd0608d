"""Other sizes of the inputs: a module and its fold come in, a call with which the two differ goes out.

It runs copies of both, and knows nothing of graphs and plans.
"""
