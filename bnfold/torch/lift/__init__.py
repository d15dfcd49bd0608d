"""From exported programs to the neutral graph: a program comes in, nodes of a few kinds go out.

It classifies and decides nothing; it changes no program and knows no plan.
"""
