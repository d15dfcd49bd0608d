"""Where the code of a module asks for the sizes of its inputs, and sizes with which the answer is another.

Code is run without values and with sizes that may vary, for which torch writes down what each question in it needs them
to be: for `if x.shape[2] < 512` that is `s0 < 512`. What torch asks by itself is no branch of the model.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from traceback import FrameSummary
from typing import cast

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from bnfold.torch.capture.copying import shadow
from bnfold.torch.capture.eager_run import undisturbed
from bnfold.torch.capture.export import Arguments
from bnfold.torch.capture.returned_values import with_tensors
from bnfold.torch.module.trials.questions import branches_on_sizes, is_of_torch
from bnfold.torch.module.trials.resizing import shapes, with_sizes

_LARGEST = 1 << 20
"""Inputs with more elements are not tried."""

_SMALL = 64
"""All sizes up to that are tried, and larger ones that a question names, of an axis or of a product of two."""

_MOST_SIZES = 4
"""How many sizes are suggested for each question; the module may refuse some."""

_Axis = tuple[int, int]
"""A tensor among the inputs, and one of its axes."""


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A question that the code asks.

    Attributes:
        where: The file and the line.
        example: The inputs with which the answer was found.
    """

    where: str
    example: Arguments
    _needs: sympy.Basic
    _axes: Mapping[sympy.Symbol, Sequence[_Axis]]

    def is_left_by(self, arguments: Arguments) -> bool:
        """Whether a call of the same kind gets another answer."""
        found = shapes(arguments)
        if [*map(len, found)] != [*map(len, shapes(self.example))]:
            return False
        return self._is_left({symbol: found[place][axis] for symbol, ((place, axis), *_) in self._axes.items()})

    def others(self) -> list[Arguments]:
        """Calls that get another answer, the nearest first."""
        here = shapes(self.example)
        sizes = {symbol: here[place][axis] for symbol, ((place, axis), *_) in self._axes.items()}
        named = {abs(int(number)) for number in self._needs.atoms(sympy.Integer)}
        named |= {number // size for number in named for size in sizes.values() if size}
        candidates = {*range(1, _SMALL + 1), *(number + step for number in named for step in (-1, 0, 1))} - {0, -1}
        found = []
        for symbol in sizes:
            others = [size for size in candidates if self._is_left({**sizes, symbol: size})]
            for size in sorted(others, key=lambda size: abs(size - sizes[symbol]))[:_MOST_SIZES]:
                changed = dict.fromkeys(self._axes[symbol], size)
                if all(
                    torch.Size(changed.get((place, axis), old) for axis, old in enumerate(shape)).numel() <= _LARGEST
                    for place, shape in enumerate(here)
                ):
                    found.append(with_sizes(self.example, changed))
        return found

    def _is_left(self, sizes: Mapping[sympy.Symbol, int]) -> bool:
        numbers = {symbol: sympy.Integer(size) for symbol, size in sizes.items()}
        return bool(self._needs.xreplace(numbers) == sympy.false)


def branches(module: nn.Module, example: Arguments) -> list[Branch]:
    """The questions that the code of a module asks when it is called with an example.

    Args:
        module: The module; copies of it are run.
        example: What it is called with.
    """
    if not branches_on_sizes(module, example):
        return []
    environment, axes = ShapeEnv(duck_shape=False), dict[sympy.Symbol, list[_Axis]]()
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    places = iter(range(len(shapes(example))))

    def varying(tensor: Tensor) -> Tensor:
        place = next(places)
        sizes: StatelessSymbolicContext[..., object] = StatelessSymbolicContext([DimDynamic.DYNAMIC] * tensor.dim())
        fake = mode.from_tensor(tensor.detach(), source=ConstantSource(f"input_{place}"), symbolic_context=sizes)
        for axis, size in enumerate(fake.shape):
            if isinstance(size, torch.SymInt):
                axes.setdefault(size.node.expr, []).append((place, axis))
        return fake

    copied = shadow(module)
    with undisturbed(()), suppress(Exception):  # what it asked before it failed was asked
        args, kwargs = cast(Arguments, with_tensors(example, varying))
        with mode:
            copied(*args, **kwargs)
    asked = [(guard.expr, guard.sloc.framework_loc) for guard in environment.guards]
    return [
        Branch(f"{Path(frame.filename).name}:{frame.lineno}", example, needs, {size: axes[size] for size in read})
        for needs, frame in asked
        if isinstance(frame, FrameSummary) and not is_of_torch(frame.filename)
        if (read := needs.free_symbols) and read <= axes.keys()
    ]
