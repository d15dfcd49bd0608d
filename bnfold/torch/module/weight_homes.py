"""Where the weight and the bias of each linear map are kept, and whether new ones can be put there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from bnfold.algebra.tensor import Tensor
from bnfold.graph import Graph, MapNode
from bnfold.reasons import Stop, StopCode
from bnfold.torch.capture.capture import Capture
from bnfold.torch.capture.hooks import COMPUTES_WEIGHT
from bnfold.torch.fx.tensors import memory
from bnfold.torch.lift.constants import Constant
from bnfold.torch.module.module_calls import Traces, handle
from bnfold.torch.module.tensor_slots import Group, Readers, Slots

_FORWARDS = (
    *(nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward),
    *(nn.ConvTranspose1d.forward, nn.ConvTranspose2d.forward, nn.ConvTranspose3d.forward),
)
_CONVOLUTIONS = tuple(kind._conv_forward for kind in (_ConvNd, nn.Conv1d, nn.Conv2d, nn.Conv3d))


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """A weight or bias that a parametrization computes anew at each call.

    Attributes:
        module: The module that has it.
        name: Its name there.
    """

    module: nn.Module
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Home:
    """Where the weight and the bias of a map are kept.

    Attributes:
        weight: The parameter, or what computes it.
        bias: The same for the bias; None if there is none.
        owner: The module that has them, if it is one of torch's layers: it uses a bias as soon as it has one.
    """

    weight: Group | Computed
    bias: Group | Computed | None
    owner: nn.Module | None

    @property
    def groups(self) -> Iterator[Group]:
        """The parameters."""
        yield from (kept for kept in (self.weight, self.bias) if isinstance(kept, Group))


def is_torch_layer(module: nn.Module) -> bool:
    """Whether a module runs torch's own code for a convolution or nn.Linear, which reads its weight and bias."""
    kind = type(module)
    return (
        not isinstance(module, torch.jit.ScriptModule)
        and kind.forward in _FORWARDS
        and kind.__call__ is nn.Module.__call__
        and not {"forward", "_conv_forward"} & vars(module).keys()
        and (not hasattr(kind, "_conv_forward") or kind._conv_forward in _CONVOLUTIONS)
    )


def takes_trial_bias(module: nn.Module) -> bool:
    """Whether only a trial can tell if a layer without a bias would use one: its code is not torch's."""
    return isinstance(module, _ConvNd | nn.Linear) and module.bias is None and not is_torch_layer(module)


def trial_bias(module: nn.Module) -> nn.Parameter:
    """A bias of zeros for a layer."""
    assert isinstance(module, _ConvNd | nn.Linear)  # `takes_trial_bias` says so
    size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return nn.Parameter(module.weight.new_zeros(size), requires_grad=module.weight.requires_grad)


class Homes:
    """Finds out where the weights of maps are kept.

    Args:
        graph: The graph, with all its maps.
        traces: What ran where.
        slots: The parameters of the module.
        readers: The nodes that read each of them.
        captured: What was captured.
    """

    def __init__(self, graph: Graph, traces: Traces, slots: Slots, readers: Readers, captured: Capture) -> None:
        self._traces = traces
        self._slots = slots
        self._readers = readers
        self._captured = captured
        self._maps: dict[fx.Node, MapNode] = {}
        for node in graph.nodes:
            if isinstance(node, MapNode):
                self._maps.update(dict.fromkeys((handle(node).node, *handle(node).chain), node))

    def find(self, node: MapNode) -> Home | Stop:
        """Where the weights of a map are kept, or why they have to stay as they are."""
        module = self._traces.module(handle(node).module)
        own = module if module is not None and is_torch_layer(module) else None
        linear = node.linear
        weight = self._kept(node, linear.weight, "weight", own)
        if isinstance(weight, Stop):
            return weight
        bias = None if linear.bias is None else self._kept(node, linear.bias, "bias", own)
        if isinstance(bias, Stop):
            return bias
        if bias is not None and linear.beta != 1:
            return Stop(StopCode.NEEDS_GRAPH, f"the code around {_named(node)} scales its bias")
        home = Home(weight, bias, own)
        for group in home.groups:
            stop = self._may_change(node, group)
            if stop is not None:
                return stop
        return home

    def sharing(self, group: Group) -> Iterator[MapNode]:
        """The maps that read a parameter."""
        yield from dict.fromkeys(self._maps[reader] for reader in self._readers.get(group, ()) if reader in self._maps)

    def _kept(self, node: MapNode, tensor: Tensor, name: str, own: nn.Module | None) -> Group | Computed | Stop:
        if isinstance(tensor, Constant) and tensor.parameter is not None:
            group = self._slots.find(tensor.parameter)
            if group is not None and tuple(group.tensor.shape) == tensor.shape:
                if not group.is_plain:
                    reason = f"the {name} of {_named(node)} shares memory with something else, or is no plain tensor"
                    return Stop(StopCode.SHARED_WEIGHT, reason)
                return group
        if own is not None and is_computed(own, name):
            return Computed(own, name)
        reason = f"the {name} of {_named(node)} is no parameter, code computes it, and that only a graph can replace"
        return Stop(StopCode.NEEDS_GRAPH, reason)

    def _may_change(self, node: MapNode, group: Group) -> Stop | None:
        for reader in self._readers.get(group, ()):
            if reader not in self._maps:
                reason = f"a parameter of {_named(node)} is also read by '{reader.name}'"
                return Stop(StopCode.SHARED_WEIGHT, reason)
        if memory(group.tensor) in self._captured.read_outside:
            reason = (
                f"code that torch.export cannot follow ({self._captured.reason}) reads a parameter of {_named(node)}"
            )
            return Stop(StopCode.NOT_CAPTURED, reason)
        for slot in group.slots:
            if len(group.slots) > 1 and not self._traces.was_called(slot.module):
                reason = f"a parameter of {_named(node)} is also '{slot.full_name}', which the example does not run"
                return Stop(StopCode.SHARED_WEIGHT, reason)
        return None


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether a parametrization, new style or old, computes a parameter of a module."""
    return parametrize.is_parametrized(module, name) or computing_hook(module, name) is not None


def computing_hook(module: nn.Module, name: str) -> int | None:
    """The key of the forward pre-hook that computes a parameter of a module, if there is one."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, COMPUTES_WEIGHT) and name in (
            getattr(hook, "name", None),
            getattr(hook, "_tensor_name", None),
        ):
            return key
    return None


def _named(node: MapNode) -> str:
    return f"{node.op_type} '{node.name}'"
