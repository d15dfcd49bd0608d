"""How the parts of an affine move past each kind of operator."""

from bnfold.rules.row import Part, Row
from bnfold.rules.table import TABLE

__all__ = ["TABLE", "Part", "Row"]
