"""Whether the code of a module goes another way for inputs of other sizes.

Code is run with sizes that know when they are compared. A question of the model's own code is answered wrongly once:
where that raises, it only guards what the module takes, and where the run goes on, it is a branch.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnfold.torch.capture.eager_run import run_first
from bnfold.torch.capture.export import Arguments

_MOST_QUESTIONS = 64
"""Of more than that, one is taken for a branch without a look."""

_TORCH = Path(torch.__file__).parent
_SIZES = (Tensor.shape.__get__, Tensor.size, Tensor.numel)  # type: ignore[attr-defined]
_ARITHMETIC = ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "rmod", "neg", "abs")
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne", "bool")


def branches_on_sizes(module: nn.Module, example: Arguments) -> bool:
    """Whether the code of a module branches on a size of what it reads or computes.

    Args:
        module: The module; copies of it are run.
        example: What it is called with.
    """
    asked = _Answers(None)
    if not run_first(module, example, asked):
        return asked.count > 0
    if asked.count > _MOST_QUESTIONS or asked.by_length:
        return True
    return any(run_first(module, example, _Answers(number)) for number in range(asked.count))


def is_of_torch(file: str) -> bool:
    """Whether a source file is one of PyTorch's own."""
    return Path(file).is_relative_to(_TORCH)


class _Answers(TorchFunctionMode):
    """Counts the questions about sizes.

    Args:
        wrong: The number of the question that is answered wrongly.
    """

    def __init__(self, wrong: int | None) -> None:
        super().__init__()
        self.count = 0
        self.by_length = False
        self._wrong = wrong

    def size(self, number: int) -> "_Size":
        """A size, or what follows from sizes."""
        made = _Size(number)
        made.answers = self
        return made

    def answer(self, right: bool) -> bool:
        """What a question gets that is asked two frames away."""
        if is_of_torch(sys._getframe(2).f_code.co_filename):
            return right
        self.count += 1
        return right is not (self.count - 1 == self._wrong)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        self.by_length |= func is Tensor.__len__
        if func not in _SIZES:
            return result
        return torch.Size(map(self.size, result)) if isinstance(result, torch.Size) else self.size(int(result))  # type: ignore[call-overload]


class _Size(int):
    """A size that knows when it is compared."""

    answers: _Answers
    __hash__ = int.__hash__


def _arithmetic(plain: Callable[..., object]) -> Callable[..., object]:
    def method(self: _Size, *others: object) -> object:
        result = plain(self, *others)
        return self.answers.size(result) if isinstance(result, int) else result

    return method


def _comparison(plain: Callable[..., object]) -> Callable[..., object]:
    def method(self: _Size, *others: object) -> object:
        result = plain(self, *others)
        return self.answers.answer(result) if isinstance(result, bool) else result

    return method


for _name in _ARITHMETIC:
    setattr(_Size, f"__{_name}__", _arithmetic(getattr(int, f"__{_name}__")))
for _name in _COMPARISONS:
    setattr(_Size, f"__{_name}__", _comparison(getattr(int, f"__{_name}__")))
