"""The paths of modules as the module itself has them.

Where a model has one submodule in two places, torch.export follows attributes by proxies, and names what code takes out
of a part of a list by the way it took: `model.slice(1, None, None).0.bn` for `for block in self.model[1:]`. An
nn.Sequential keeps the names of what is in its parts, an nn.ModuleList counts anew.
"""

import re

from torch import fx, nn
from torch.export import ExportedProgram

_SLICE = re.compile(r"slice\((None|-?\d+), (None|-?\d+), (None|-?\d+)\)")


def restore_paths(program: ExportedProgram, root: nn.Module) -> None:
    """Gives the nodes of a program the paths that modules have in the one that was exported."""
    for graph_module in program.graph_module.modules():
        if not isinstance(graph_module, fx.GraphModule):
            continue
        for node in graph_module.graph.nodes:
            stack = node.meta.get("nn_module_stack")
            if stack and any("slice(" in path for path, _ in stack.values()):
                node.meta["nn_module_stack"] = {
                    key: (real_path(path, root), kind) for key, (path, kind) in stack.items()
                }


def real_path(path: str, root: nn.Module) -> str:
    """The path of a module in which parts of lists are written out; as it is where that is not known."""
    module: nn.Module | None = root
    names = {name: name for name in root._modules}
    found: list[str] = []
    for part in path.split("."):
        taken = _SLICE.fullmatch(part)
        if taken is not None:
            bounds = (None if bound == "None" else int(bound) for bound in taken.groups())
            kept = [*names.items()][slice(*bounds)]
            renumbered = isinstance(module, nn.ModuleList)
            names = {str(place) if renumbered else name: real for place, (name, real) in enumerate(kept)}
            continue
        if module is None or part not in names:
            return path
        found.append(names[part])
        module = module._modules[names[part]]
        names = {} if module is None else {name: name for name in module._modules}
    return ".".join(found)
