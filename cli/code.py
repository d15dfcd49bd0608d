"""A model that is code: `package.module:factory`, its weights, and what it is called with."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnfold.errors import ModelLoadError

from .models import CodeOptions, parse_arguments, parse_dynamic

if TYPE_CHECKING:
    import torch

    from bnfold.torch.examples import Call

    from .compare import Verification


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


def build(import_path: str, options: CodeOptions, inputs: "Verification") -> Code:
    """Builds a module and what it is called with.

    Args:
        import_path: `package.module:factory`; the current folder is searched first.
        options: Weights and arguments.
        inputs: Shapes, data and value ranges.

    Raises:
        UsageError: An option is malformed, or does not fit the factory or forward.
        ModelLoadError: The code or the weights cannot be loaded.
        UnsafeModelError: The weights would have to be unpickled.
        UnsupportedModelError: The module is of a kind that cannot be folded.
    """
    arguments, dynamic = parse_arguments(options.arguments), parse_dynamic(options.dynamic)
    shapes, ranges = inputs.parsed_shapes(), inputs.parsed_ranges()
    data = inputs.loaded_inputs()
    from bnfold.torch.examples import dynamic_shapes, make_example  # noqa: PLC0415 - torch takes seconds to import
    from bnfold.torch.factory import build_module  # noqa: PLC0415
    from bnfold.torch.state_dict import load_weights  # noqa: PLC0415
    from bnfold.torch.wrappers import refuse_unsupported  # noqa: PLC0415

    sys.path.insert(0, os.getcwd())
    module = build_module(import_path, arguments)
    if options.weights is not None:
        loaded = load_weights(module, options.weights, trust_pickle=options.trust_pickle)
        if loaded.nest or loaded.prefix:
            typer.echo(f"weights from {loaded}", err=True)
    refuse_unsupported(module)
    first = data[0] if data else None
    call = make_example(module, shapes, first, ranges=ranges, dynamic=dynamic, seed=inputs.seed)
    tensors = (*module.parameters(), *module.buffers())
    return Code(
        module,
        call,
        dynamic,
        dynamic_shapes(module, call, dynamic) if dynamic else None,
        sum(tensor.nbytes for tensor in tensors),
    )


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Sends to stderr what a model's own code prints: stdout is for results."""
    with redirect_stdout(sys.stderr):
        yield


def no_code(model: str, *, trust_pickle: bool) -> ModelLoadError:
    """What is wrong with a file of weights in the place of a model; or, raised, with the file itself."""
    from bnfold.torch.state_dict import read_weights  # noqa: PLC0415

    read_weights(Path(os.path.abspath(model)), trust_pickle=trust_pickle)
    return ModelLoadError(
        f"{model} holds weights, but not the code that uses them.",
        hint=f"Give that: bnfold fold package.module:factory --weights {model} --input 1,3,224,224 -o OUT.",
    )
