"""Folds an ExportedProgram: a program and a plan come in, a copy of the program with other nodes and weights goes out.

It knows graphs, not modules.
"""
