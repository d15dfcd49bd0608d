"""Folds a module: a module and a plan of its graph come in, a module of the same class goes out.

It tells the planner what a module cannot express, and must not rewrite graphs.
"""
