"""How the parts of an affine move past each kind of operator: a node and arrays come in, arrays or a reason go out.

It knows one operator at a time, neither the graph around it nor torch nor onnx.
"""

from bnfold.rules.row import Part, Row
from bnfold.rules.table import TABLE

__all__ = ["TABLE", "Part", "Row"]
