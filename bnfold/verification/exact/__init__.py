"""The exact gate: whether what a fold did is right as algebra, without data and without a tolerance.

In come a model and the options of its fold; out comes, for every region that changed, whether both sides gave the same
bits on small numbers. It knows nothing of rounding bounds, samples and devices.
"""
