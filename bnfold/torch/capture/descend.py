"""One run of a module on its example, watched: what its code calls, with which inputs, and what it reads itself.

torch.export may refuse a module for a few lines of its forward, a branch on values for instance. Then the modules that
these lines call are captured one by one, and what the lines do in between is not known, except for the parameters that
they read: operators are watched while no module further down is running.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, auto

from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold.torch.capture.eager_run import followed, undisturbed
from bnfold.torch.capture.export import Arguments
from bnfold.torch.fx.tensors import memory


class _Where(Enum):
    """Whose code is running."""

    ELSEWHERE = auto()
    FRAME = auto()
    CALLED = auto()


@dataclass(slots=True, eq=False)
class Frame:
    """The calls of one module, all together.

    Attributes:
        calls: The paths of the modules that its own code calls, with the inputs, the first of each kind only.
        read: The memory of the parameters and buffers that its own code reads.
    """

    calls: dict[str, list[Arguments]] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)


def run_example(root: nn.Module, arguments: Arguments, path: str) -> Frame:
    """Runs a module and watches one of the modules inside of it.

    Args:
        root: The module to be run; its state may change.
        arguments: What to run it with; a copy of the tensors is used.
        path: The path of the module to be watched.

    Raises:
        Exception: Whatever the module raises.
    """
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), arguments)
    watch = _Watch(root, root.get_submodule(path))
    with undisturbed(root.parameters()), watch.hooks(), _Reads(watch):
        root(*args, **kwargs)
    return watch.frame


class _Watch:
    """Follows the calls of modules.

    Args:
        root: The module that is run.
        watched: The module whose own code is of interest.
    """

    def __init__(self, root: nn.Module, watched: nn.Module) -> None:
        self.frame = Frame()
        self.held = [*root.parameters(), *root.buffers()]
        self._memory = set(map(memory, self.held))
        self._paths = {module: path for path, module in root.named_modules()}
        self._watched = watched
        self._kinds: set[object] = set()
        self._stack = [_Where.ELSEWHERE]

    @property
    def in_frame(self) -> bool:
        """Whether it is the code of the watched module itself that runs."""
        return self._stack[-1] is _Where.FRAME

    def hooks(self) -> AbstractContextManager[None]:
        """Watches all modules."""
        return followed(self._paths, self._enter, self._leave)

    def _enter(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        where = self._stack[-1]
        if where is _Where.FRAME:
            self.note_reads((args, kwargs))
            self._record(self._paths[module], (args, kwargs))
            self._stack.append(_Where.CALLED)
        else:
            self._stack.append(_Where.FRAME if module is self._watched else where)

    def note_reads(self, arguments: object) -> None:
        """Remembers the parameters and buffers among some arguments."""
        tensors = (leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor))
        self.frame.read |= self._memory.intersection(map(memory, tensors))

    def _leave(self, *_: object) -> None:
        self._stack.pop()

    def _record(self, path: str, arguments: Arguments) -> None:
        leaves, structure = pytree.tree_flatten(arguments)
        kind = (path, structure, *map(_kind, leaves))
        if kind not in self._kinds:
            self._kinds.add(kind)
            detached = pytree.tree_map_only(Tensor, Tensor.detach, arguments)
            self.frame.calls.setdefault(path, []).append(detached)


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the parameters and buffers that operators in the watched code read."""

    supports_higher_order_operators = True

    def __init__(self, watch: _Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if self._watch.in_frame:
            # What the graphs of a higher-order operator read is not to be seen.
            self._watch.note_reads(self._watch.held if isinstance(func, HigherOrderOperator) else (args, kwargs))
        return func(*args, **(kwargs or {}))


def _kind(leaf: object) -> object:
    """What torch.export tells inputs apart by."""
    if isinstance(leaf, Tensor):
        return (tuple(leaf.shape), leaf.dtype, leaf.device, leaf.layout)
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return (type(leaf), leaf)
    return id(leaf)
