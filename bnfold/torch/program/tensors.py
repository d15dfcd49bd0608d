"""The parameters, buffers and constants of a program under way, by their names (FQN, such as "layer1.0.conv.weight").

They are those of the original until they are changed, which changes them under all names of a tied parameter.
"""

import copy

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from bnfold.torch.program.names import FreshNames
from bnfold.torch.program.ownership import Ownership


class ProgramTensors:
    """The tensors of a copy of a program.

    Args:
        program: The original; it keeps what it has.

    Attributes:
        state: The parameters and persistent buffers.
        constants: Everything else that the program holds.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.state: dict[str, Tensor] = copy.copy(program.state_dict)
        self.constants = dict(program.constants)
        self._ownership = Ownership(program)
        modules = (entry.fqn for entry in program.module_call_graph)
        self._names = FreshNames([*program.state_dict, *program.constants, *modules])
        self._written = {spec.target for spec in program.graph_signature.output_specs}

    def find(self, name: str) -> Tensor:
        """What is called so now."""
        found = self.state.get(name)
        return self.constants[name] if found is None else found

    def add(self, base: str, tensor: nn.Parameter) -> str:
        """Adds a parameter called `base`, or if something is called so already with a name that begins with it."""
        name = self._names.fresh(base, f"{base}_folded")
        self.state[name] = tensor
        return name

    def change(self, name: str, reader: fx.Node, values: Tensor) -> bool:
        """Gives a parameter or buffer other values, under all its names, if only one node would notice.

        Args:
            name: Its name.
            reader: The node of the original that reads it.
            values: Of the same shape; device, memory format and requires_grad are those of the present tensor.

        Returns:
            Whether that was possible; it is not if anything but `reader` reads the tensor.
        """
        present = self.find(name)
        if not self._ownership.belongs_to(name, reader) or values.shape != present.shape:
            return False
        tensor = torch.empty_like(present, requires_grad=False, memory_format=torch.preserve_format).copy_(values)
        if isinstance(present, nn.Parameter):
            tensor = nn.Parameter(tensor, present.requires_grad)
        for twin in self._ownership.twins(name):
            (self.state if twin in self.state else self.constants)[twin] = tensor
        return True

    def names_of(self, name: str) -> tuple[str, ...]:
        """All names of a tensor that may go if nothing reads it; () if the program writes to it."""
        twins = self._ownership.twins(name)
        return twins if self._written.isdisjoint(twins) else ()

    def twins(self, name: str) -> tuple[str, ...]:
        """All names of a tensor."""
        return self._ownership.twins(name)

    def counter_of(self, name: str) -> str | None:
        """The name of the counter of batches beside a running mean."""
        module, found, _ = name.rpartition("running_mean")
        counter = f"{module}num_batches_tracked"
        return counter if found and counter in self.state else None

    def remove(self, name: str) -> None:
        """Forgets what is called so."""
        self.state.pop(name, None)
        self.constants.pop(name, None)
