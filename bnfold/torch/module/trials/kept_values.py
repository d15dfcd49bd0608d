"""Which nodes of a program compute the values that the code of a module keeps on it, as `self.features = y` does.

No graph tells of that, so they are found by what they give.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold.torch.capture.eager_run import undisturbed
from bnfold.torch.capture.export import Arguments
from bnfold.torch.module.trials.comparing import is_kept


def nodes_of(program: ExportedProgram, arguments: Arguments, kept: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Looks for values among those that a program computes.

    Args:
        program: What was captured of the module with an example.
        arguments: The example.
        kept: The values.

    Returns:
        For each value the names of the nodes that give the same numbers; none for one that is made of others.
    """
    found: dict[str, list[str]] = {name: [] for name in kept}
    leaves = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), pytree.tree_leaves(arguments))
    module = program.module()
    run = _Watching(module, kept, found)
    with undisturbed(module.parameters()):
        torch.default_generator.manual_seed(0)
        try:
            run.run(*leaves, enable_io_processing=False)
        except Exception:  # noqa: BLE001 - whatever the code of the module raises
            return {name: [] for name in kept}
    return found


class _Watching(fx.Interpreter):
    """Runs a graph and notes the nodes whose results are among some values."""

    def __init__(self, module: torch.nn.Module, kept: Mapping[str, Tensor], found: Mapping[str, list[str]]) -> None:
        assert isinstance(module, fx.GraphModule)  # what torch makes of a program
        super().__init__(module)
        self._kept, self._found = kept, found

    def run_node(self, n: fx.Node) -> object:
        """Runs one node."""
        result = super().run_node(n)
        for name in self._names(result) if isinstance(result, Tensor) else ():
            self._found[name].append(n.name)
        return result

    def _names(self, result: Tensor) -> Iterator[str]:
        for name, value in self._kept.items():
            if is_kept(value, result):
                yield name
