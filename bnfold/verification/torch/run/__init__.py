"""PyTorch models under examination: a module, program or file comes in, its outputs on samples and devices go out.

It must not know that two models are compared.
"""
