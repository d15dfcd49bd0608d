"""Proof that a folded model still gives what the original gives: both come in, a report with a verdict goes out.

It must not change either model, and takes nobody's word for what was folded.
"""

from bnfold.input_spec import InputSpec, load_inputs, parse_input, parse_value_range
from bnfold.verification.entry import verify

__all__ = ["InputSpec", "load_inputs", "parse_input", "parse_value_range", "verify"]
