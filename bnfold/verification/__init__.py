"""Proof that a folded model still gives what the original gives, on the runtime that will serve it."""

from bnfold.verification.entry import verify
from bnfold.verification.inputs import InputSpec, load_inputs, parse_input, parse_value_range

__all__ = ["InputSpec", "load_inputs", "parse_input", "parse_value_range", "verify"]
