"""Whether the code of a module does the same without its batch norms: runs of it come in, differences go out.

It changes no module of the caller, and knows no graph.
"""
