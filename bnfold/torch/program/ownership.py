"""Who reads each tensor of a program, and which names mean the same tensor.

Tied parameters have one tensor under several names, and a tensor may be a part of another. A program that was saved and
loaded has a tensor of its own for each name; so memory is compared, not identity.
"""

from collections import Counter

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from bnfold.torch.fx.readers import readers_by_name
from bnfold.torch.lift.constants import canonical_names

_Memory = tuple[str, int]


class Ownership:
    """The names and the readers of the tensors of a program.

    Args:
        program: The program; nothing is copied, so it is to be asked before anything changes.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._twins: dict[str, tuple[str, ...]] = {}
        canonical = canonical_names(program)
        for name, first in canonical.items():
            self._twins[first] = (*self._twins.get(first, ()), name)
        self._first = canonical
        self._in_memory: dict[_Memory, set[str]] = {}
        self._memory: dict[str, _Memory] = {}
        for name, tensor in {**program.constants, **program.state_dict}.items():
            if isinstance(tensor, Tensor):
                self._memory[name] = _memory(tensor)
                self._in_memory.setdefault(self._memory[name], set()).add(canonical[name])
        self._readers = readers_by_name(program)
        signature = program.graph_signature
        self._fixed = {spec.target for spec in signature.input_specs if spec.kind is InputKind.CONSTANT_TENSOR}
        self._fixed |= {spec.target for spec in signature.output_specs}

    def twins(self, name: str) -> tuple[str, ...]:
        """All names of the very same tensor, `name` among them; of a name that the program did not have, only that."""
        return self._twins[self._first[name]] if name in self._first else (name,)

    def belongs_to(self, name: str, node: fx.Node) -> bool:
        """Whether a tensor may change with a node: it is a parameter or a buffer that this node reads, once, and alone.

        Args:
            name: The name of the tensor.
            node: A node of the program, in any of its graphs.
        """
        if len(self._in_memory[self._memory[name]]) > 1 or not self._fixed.isdisjoint(self.twins(name)):
            return False
        readers: Counter[fx.Node] = Counter()
        for twin in self.twins(name):
            readers.update(self._readers.get(twin, Counter()))
        return readers == Counter([node])


def _memory(tensor: Tensor) -> _Memory:
    try:
        address = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, fake, or of a subclass without a storage
        address = 0
    return (str(tensor.device), address) if address else ("", id(tensor))
