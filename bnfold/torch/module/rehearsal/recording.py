"""One run of a module, written down: which functions of torch its code calls, on which values, and what it returns.

Two runs are alike if what is written down is equal. Values have numbers in the order in which they come up, parameters
and buffers have their names. Modules that a fold takes out are left out in the original, too: their output is the value
that they were given.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from bnfold.torch.capture.eager_run import followed, undisturbed
from bnfold.torch.capture.export import Arguments
from bnfold.torch.fx.tensors import named_tensors
from bnfold.torch.module.rehearsal.shape_cache import ShapeCache

_PLAIN = (int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))

_INSIDE = "inside"
"""What modules that are left out compute on the way."""

Token = object


class Values(Enum):
    """What a run computes."""

    META = auto()
    """Shapes alone, on torch's device of that name: fast, but not all code runs there."""
    FAKE = auto()
    """Shapes alone, on the devices that the tensors have."""
    REAL = auto()


@dataclass(frozen=True, slots=True)
class Edited:
    """The places of a module where a fold changes more than values.

    Attributes:
        names: The names of all parameters and buffers, each with the first name of the same tensor.
        removed: The paths of the modules that go, with the names of their submodules that stay.
        added: The paths and names of the parameters that are new.
        computed: The paths of the layers whose parametrization goes.
    """

    names: Mapping[str, str]
    removed: Mapping[str, tuple[str, ...]]
    added: frozenset[tuple[str, str]]
    computed: frozenset[str]


@dataclass(slots=True, eq=False)
class Record:
    """What one run did.

    Attributes:
        entries: The calls of torch's functions in their order, and at the end what the module returned.
        results: What the parts returned, in the order of their calls.
    """

    entries: list[object] = field(default_factory=list)
    results: list[object] = field(default_factory=list)


def record(
    module: nn.Module,
    arguments: Arguments,
    edited: Edited,
    values: Values,
    *,
    shapes: ShapeCache | None = None,
    parts: frozenset[str] = frozenset(),
    results: list[object] | None = None,
) -> Record:
    """Runs a module and writes down what its code does.

    Args:
        module: The module; its state may change. For `Values.META` its parameters and buffers are there.
        arguments: What to run it with.
        edited: What is not to be written down, because a fold changes it.
        values: What is computed.
        shapes: Where nothing is computed: what is known of results from other runs of this kind.
        parts: The paths of modules whose results are kept.
        results: What these return, whatever they compute; by default what they compute.

    Raises:
        Exception: Whatever the module raises.
    """
    run = _Run(module, edited, parts, results)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(module.parameters() if values is Values.REAL else ()))
        torch.default_generator.manual_seed(0)  # not torch.manual_seed, which reaches the generators of all devices
        match values:
            case Values.META:
                stack.enter_context(torch.device("meta"))
                given: Callable[[Tensor], Tensor] = _on_meta
            case Values.FAKE:
                fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
                given = fake.from_tensor
            case Values.REAL:
                given = torch.clone
        args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: given(tensor.detach()), arguments)
        for position, tensor in enumerate(leaf for leaf in pytree.tree_leaves((args, kwargs)) if _is_tensor(leaf)):
            run.name(tensor, ("input", position))
        stack.enter_context(run.hooks())
        with _Calls(run, None if values is Values.REAL else shapes):
            result = module(*args, **kwargs)
    run.record.entries.append(("returns", run.described(result)))
    return run.record


class _Run:
    """Follows one run.

    Args:
        root: The module that runs.
        edited: What is left out.
        parts: See `record`.
        results: See `record`.
    """

    def __init__(self, root: nn.Module, edited: Edited, parts: frozenset[str], results: list[object] | None) -> None:
        self.record = Record()
        self._edited = edited
        self._parts = parts
        self._results = results
        self._paths = {module: path for path, module in root.named_modules()}
        self._tokens = WeakIdKeyDictionary()
        self._versions = WeakIdKeyDictionary()
        self._count = 0
        self._frames: list[_Frame] = []
        for name, tensor in named_tensors(root):
            path, _, own = name.rpartition(".")
            self.name(tensor, None if (path, own) in edited.added else edited.names.get(name, name))

    def name(self, tensor: Tensor, token: Token) -> None:
        """Says which value a tensor is."""
        self._tokens[tensor] = token
        self._versions[tensor] = _version(tensor)

    def hooks(self) -> AbstractContextManager[None]:
        """Follows the calls of all modules."""
        return followed(self._paths, self._enter, self._leave)

    def called(self, function: object, arguments: object, result: object) -> None:
        """Writes down a call of a function."""
        frame = self._frames[-1] if self._frames else _Frame()
        tensors = [leaf for leaf in pytree.tree_leaves(result) if _is_tensor(leaf)]
        if frame.is_silent:
            given = [leaf for leaf in pytree.tree_leaves(arguments) if _is_tensor(leaf) and leaf in self._tokens]
            is_value = frame.value in [self._tokens[leaf] for leaf in given]
            for tensor in tensors:
                self.name(tensor, frame.value if is_value else _INSIDE)
            return
        if tensors or result is None:
            name = getattr(function, "__qualname__", None) or str(function)
            self.record.entries.append((name, self.described(arguments)))
            self._count_up(tensors)

    def is_passed_on(self, result: object) -> TypeGuard[Tensor]:
        """Whether a result is what a function was given, unchanged, as that of a dropout is."""
        if not isinstance(result, Tensor) or isinstance(result, nn.Parameter) or result not in self._tokens:
            return False
        version = _version(result)
        return version is not None and bool(self._versions[result] == version)

    def described(self, value: object) -> object:
        """Nested values in a form that can be compared."""
        leaves, structure = pytree.tree_flatten(value)
        return structure, tuple(map(self._leaf, leaves))

    def _leaf(self, leaf: object) -> object:
        if isinstance(leaf, Tensor):
            return self._token(leaf)
        return leaf if isinstance(leaf, _PLAIN) else type(leaf).__qualname__

    def _token(self, tensor: Tensor) -> Token:
        if tensor not in self._tokens:  # made where nobody looked
            self._count_up([tensor])
        return self._tokens[tensor]

    def _count_up(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._count += 1
            self.name(tensor, self._count)

    def _enter(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        path = self._paths[module]
        outer = self._frames[-1] if self._frames else _Frame()
        stays = path.rpartition(".")[2] in outer.stays
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if _is_tensor(leaf)]
        value = self._token(inputs[0]) if inputs else None
        silent = path in self._edited.removed or path in self._edited.computed or (outer.is_silent and not stays)
        is_part = path in self._parts and not outer.in_part
        self._frames.append(
            _Frame(silent, self._edited.removed.get(path, ()), value, is_part, outer.in_part or is_part)
        )

    def _leave(self, module: nn.Module, _: object, result: object) -> object:
        frame = self._frames.pop()
        if self._paths[module] in self._edited.computed:
            self.record.entries.append(("computed", self._paths[module], frame.value))
            self._count_up(leaf for leaf in pytree.tree_leaves(result) if _is_tensor(leaf))
        if not frame.is_part:
            return None
        known = len(self.record.results)
        kept = _copied(result if self._results is None or known >= len(self._results) else self._results[known])
        self.record.results.append(kept)
        if self._results is None:
            return None
        given = _copied(kept)  # what reads it may change it in place
        for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(given), strict=False):
            if isinstance(old, Tensor) and isinstance(new, Tensor):
                self.name(new, self._token(old))
        return given


@dataclass(frozen=True, slots=True)
class _Frame:
    """A call of a module.

    Attributes:
        is_silent: Whether what it calls is left out.
        stays: The names of its submodules for which that does not hold.
        value: What it was given first.
        is_part: Whether its result may be given beforehand.
        in_part: Whether it is inside of such a one, or one itself.
    """

    is_silent: bool = False
    stays: tuple[str, ...] = ()
    value: Token = None
    is_part: bool = False
    in_part: bool = False


class _Calls(TorchFunctionMode):
    """Sees the calls of torch's functions."""

    def __init__(self, run: _Run, shapes: ShapeCache | None) -> None:
        super().__init__()
        self._run = run
        self._shapes = shapes

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = dict(kwargs or {})
        result = func(*args, **given) if self._shapes is None else self._shapes.call(func, args, given)
        if self._run.is_passed_on(result):
            result = result.detach()  # one tensor more, for one run may pass on what the other has to compute
        self._run.called(func, (args, given), result)
        return result


def _version(tensor: Tensor) -> int | None:
    """How many times a tensor was written to; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _copied(value: object) -> object:
    copied: object = pytree.tree_map_only(Tensor, torch.clone, value)
    return copied


def _is_tensor(leaf: object) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor)
