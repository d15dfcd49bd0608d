"""A model that is a module: `package.module:factory` or a pickle, its weights, and what it is called with."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import UsageError
from bnfold.extras import require

from .models import CodeOptions, ModelKind, kind_of, parse_arguments, parse_dynamic
from .terminal import tell

if TYPE_CHECKING:
    import torch

    from bnfold.torch.file.examples import Call

    from .compare import Verification


_STDOUT, _STDERR = 1, 2
_OTHER_INPUTS = (
    "Check their shapes and element types, and for integers --val-range. Of a model that takes lists or dicts, as"
    " detectors do, let the factory return the part that takes tensors."
)


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """A module that was built, and how to call it.

    Attributes:
        module: The module, in inference mode, with its weights.
        call: Positional and named inputs.
        dynamic: Names of dynamic axes by input.
        dynamic_shapes: The same for torch.export; None where nothing varies.
        nbytes: Size of its parameters and buffers.
    """

    module: "torch.nn.Module"
    call: "Call"
    dynamic: Mapping[str, Mapping[int, str]]
    dynamic_shapes: "Mapping[str, Mapping[int, torch.export.Dim] | None] | None"
    nbytes: int


def import_torch() -> None:
    """Imports torch, and puts off until then what would interrupt it: in its C++ code that aborts the process.

    Raises:
        DeviceError: It is not installed, or cannot be imported.
    """
    signals = (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
    handlers = {number: handler for number in signals if callable(handler := signal.getsignal(number))}
    received: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        require("torch", "a PyTorch model")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in received:
        handlers[number](number, None)


def build(model: str, options: CodeOptions, inputs: "Verification") -> Code:
    """Builds a module and what it is called with.

    Args:
        model: `package.module:factory`, or a file of torch.save that holds a module. The current folder is the first
            that the code of the former is looked for in, and with --trust-pickle the last for that of the latter.
        options: Weights and arguments.
        inputs: Shapes, data and value ranges.

    Raises:
        UsageError: An option is malformed, or does not fit the factory or forward.
        ModelLoadError: The code or the weights cannot be loaded.
        UnsafeModelError: The weights would have to be unpickled.
        UnsupportedModelError: The module is of a kind that cannot be folded.
    """
    arguments, axes = parse_arguments(options.arguments), parse_dynamic(options.dynamic)
    shapes, ranges = inputs.parsed_shapes(), inputs.parsed_ranges()
    data = inputs.loaded_inputs()
    import_torch()
    from bnfold.torch.capture.wrappers import refuse_unsupported
    from bnfold.torch.file.examples import dynamic_shapes, make_example, name_axes
    from bnfold.torch.file.state_dict import load_weights

    _allow_code_of_folder(model, options)
    module = _module(model, arguments, options)
    if options.weights is not None:
        loaded = load_weights(module, options.weights, trust_pickle=options.trust_pickle)
        if loaded.nest or loaded.prefix:
            tell(f"weights from {loaded}")
    refuse_unsupported(module)
    first = data[0] if data else None
    dynamic = name_axes(module, axes)
    call = make_example(module, shapes, first, ranges=ranges, dynamic=dynamic, seed=inputs.seed)
    tensors = (*module.parameters(), *module.buffers())
    return Code(
        module,
        call,
        dynamic,
        dynamic_shapes(module, call, dynamic) if dynamic else None,
        sum(tensor.nbytes for tensor in tensors),
    )


def require_runs(code: Code) -> "torch.nn.Module":
    """Runs a copy of a module, whatever torch.export makes of it.

    Args:
        code: The module and its inputs.

    Returns:
        The copy, with what its code has kept on it.

    Raises:
        UsageError: It fails.
    """
    from bnfold.torch.capture.copying import shadow
    from bnfold.torch.capture.descend import run_example
    from bnfold.torch.capture.export import first_line
    from bnfold.torch.file.examples import type_hint

    copied = shadow(code.module)
    try:
        run_example(copied, code.call, "")
    except Exception as error:  # whatever the code of the module raises
        message = f"{type(code.module).__name__} fails with these inputs: {first_line(error)}"
        hint = type_hint(code.module, code.call) or _OTHER_INPUTS
        raise UsageError(message, hint=hint) from error
    return copied


@contextmanager
def hints_of_types(code: Code) -> Iterator[None]:
    """Says what to type instead where a module does not run with its inputs."""
    try:
        yield
    except UsageError:
        require_runs(code)
        raise


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Sends to stderr what a model's own code prints, in Python or not: stdout is for results."""
    with suppress(OSError):  # what is broken there is told when results are printed
        sys.stdout.flush()
    try:
        kept = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)
    except OSError:  # one of them is closed
        kept = None
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, _STDOUT)
            os.close(kept)


def _allow_code_of_folder(model: str, options: CodeOptions) -> None:
    """Puts the current folder on the path, where its code was asked for: a file of weights runs nothing beside it."""
    is_code = kind_of(model) is ModelKind.CODE
    if not is_code and not options.trust_pickle:
        return
    # what unpickling imports is found there last, so that nothing there stands in for an installed package
    sys.path.insert(0 if is_code else len(sys.path), os.getcwd())


def _module(model: str, arguments: Mapping[str, object], options: CodeOptions) -> "torch.nn.Module":
    if kind_of(model) is ModelKind.STATE:
        from bnfold.torch.file.pickled import load_pickled

        if arguments:
            raise UsageError(f"--kwargs is for a package.module:factory, which {model} is not")
        return load_pickled(Path(os.path.abspath(model)), trust_pickle=options.trust_pickle)
    from bnfold.torch.file.factory import build_module

    return build_module(model, arguments)
