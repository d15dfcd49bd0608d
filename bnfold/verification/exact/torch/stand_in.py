"""A program or a module of the same structure with small numbers for parameters; see `stand_in` for ONNX.

An expression E of parameters whose result gets small numbers stays, without a say:

    E  →  zeros_like(E) + small numbers

so that the plan sees a constant that is computed of the same parameters. In a module this is one more parametrization
of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from bnfold.algebra.rounding import Array
from bnfold.torch.capture.copying import ModuleT, copy_with
from bnfold.torch.fx.nodes import arguments
from bnfold.torch.fx.tensors import named_tensors, to_torch
from bnfold.torch.module.module_planner import Findings
from bnfold.torch.module.weight_homes import computing_hook, is_computed
from bnfold.torch.program.editor import ProgramEditor
from bnfold.verification.exact.numbers import Numbers
from bnfold.verification.exact.torch.small_numbers import SmallNumbers


def stand_in_program(program: ExportedProgram, numbers: Numbers) -> ExportedProgram:
    """Makes one of a program, which is not changed."""
    small = SmallNumbers(program, numbers)
    editor = ProgramEditor(program)
    _put(editor, replaced(small.parameters, dict(_tensors(program))))
    for node, (_, epsilon) in small.epsilons.items():
        _set_epsilon(editor.call(node), epsilon)
    for node, given in small.literals.items():
        for name, value in given.items():
            set_argument(editor.call(node), name, value)
    for node, (scope, array) in small.results.items():
        _give(editor, node, scope.graph, to_torch(array, node.meta["val"].device))
    return editor.finish()


def stand_in_findings(findings: Findings, small: SmallNumbers, copied: nn.Module) -> Findings | None:
    """What would be found out of a stand-in, if code reads nothing of it but tensors and a batch norm its epsilon.

    If code reads more, the two sides of a region get different numbers, and seem to differ.

    Args:
        findings: What was found out of the module.
        small: What the stand-in has.
        copied: The stand-in.

    Returns:
        None where that cannot be so.
    """
    program, pieces = findings.whole, findings.captured.pieces
    tensors = dict(named_tensors(copied))
    if program is None or len(pieces) > 1 or small.computed or program.constants.keys() - tensors:
        return None
    editor = ProgramEditor(program)
    _put(editor, [(name, tensors[name]) for name, _ in _tensors(program) if name in tensors])
    for node, (_, epsilon) in small.epsilons.items():
        _set_epsilon(editor.call(node), epsilon)
    program = editor.finish()
    captured = replace(findings.captured, pieces=(replace(pieces[0], program=program),))
    kept = {(id(program), name): stop for (_, name), stop in findings.kept.items()}
    return replace(findings, captured=captured, kept=kept)


def _put(editor: ProgramEditor, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        for twin in editor.tensors.twins(name):
            (editor.tensors.state if twin in editor.tensors.state else editor.tensors.constants)[twin] = tensor


def _set_epsilon(call: fx.Node, epsilon: float) -> None:
    set_argument(call, "eps" if "eps" in arguments(call) else "epsilon", epsilon)


def _give(editor: ProgramEditor, expression: fx.Node, graph: fx.Graph, result: torch.Tensor) -> None:
    """Lets whatever reads an expression read its small numbers, which are still computed of what it is computed of."""
    node = editor.call(expression)
    held = editor.add_parameter("small", nn.Parameter(result, requires_grad=False), graph)
    placeholders = [other for other in node.graph.nodes if other.op == "placeholder"]
    first = placeholders[-1] if node.op == "placeholder" else node
    zeros = editor.insert(first, torch.ops.aten.zeros_like.default, (node,), node)
    total = editor.insert(zeros, torch.ops.aten.add.Tensor, (zeros, held), node)
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not zeros)


def stand_in_module(module: ModuleT, small: SmallNumbers) -> ModuleT:
    """Makes one of a module, which is not changed; numbers in its code stay."""
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    given = {**small.rearranged, **small.parameters}
    copied = copy_with(module, {tensors[name]: tensor for name, tensor in replaced(given, tensors)})
    for path, epsilon in small.epsilons.values():
        layer = None if path is None else copied.get_submodule(path)
        if hasattr(layer, "eps"):
            setattr(layer, "eps", epsilon)  # noqa: B010 - of a class that has one
    for (path, name), array in small.computed.items():
        layer = copied.get_submodule(path)
        if is_computed(layer, name):
            _let_compute(layer, name, _Result(to_torch(array, getattr(layer, name).device)))
    return copied


def _let_compute(layer: nn.Module, name: str, result: nn.Module) -> None:
    """Lets a parametrization of a layer give small numbers, which are still computed of what it has."""
    if parametrize.is_parametrized(layer, name):
        parametrize.register_parametrization(layer, name, result, unsafe=True)
        return
    key = computing_hook(layer, name)
    assert key is not None  # it is computed
    hook = layer._forward_pre_hooks[key]
    method = "apply_mask" if isinstance(hook, BasePruningMethod) else "compute_weight"
    setattr(hook, method, partial(_result, getattr(hook, method), result))


def _result(compute: Callable[..., torch.Tensor], then: nn.Module, *args: object, **kwargs: object) -> torch.Tensor:
    result: torch.Tensor = then(compute(*args, **kwargs))
    return result


class _Result(nn.Module):
    """Gives small numbers whatever it is given."""

    def __init__(self, result: torch.Tensor) -> None:
        super().__init__()
        self.result = nn.Buffer(result)

    def forward(self, computed: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(computed) + self.result


def replaced(small: Mapping[str, Array], tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The new tensors, of the type and on the device of the old ones."""
    for name, array in small.items():
        present = tensors.get(name)
        if present is None or present.numel() != array.size:
            continue
        tensor = to_torch(array.reshape(tuple(present.shape))).to(present.dtype).to(present.device)
        yield name, nn.Parameter(tensor, present.requires_grad) if isinstance(present, nn.Parameter) else tensor


def set_argument(call: fx.Node, name: str, value: float) -> None:
    """Gives an argument of a call another value."""
    target = call.target
    assert isinstance(target, torch._ops.OpOverload)  # only operators have constants
    for position, argument in enumerate(target._schema.arguments[: len(call.args)]):
        if argument.name == name:
            call.args = (*call.args[:position], value, *call.args[position + 1 :])
            return
    call.kwargs = {**call.kwargs, name: value}


def _tensors(program: ExportedProgram) -> Iterator[tuple[str, torch.Tensor]]:
    for held in (program.constants, program.state_dict):
        yield from ((name, tensor) for name, tensor in held.items() if isinstance(tensor, torch.Tensor))
