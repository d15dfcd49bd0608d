"""What nodes of a program do to memory: which values share it, and which are changed in place.

Graphs come in, facts go out; nothing here knows what an operator computes.
"""
