"""Reading and copying fx graphs, and tensors as arrays: what any tool for exported programs needs.

Nothing here knows affines, plans, or why a graph is read.
"""
