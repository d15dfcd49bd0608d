"""A PyTorch model to be run: never the caller's own object, but a copy of it that shares the parameters."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, Union, cast

import torch
from torch.export import ExportedProgram
from torch.func import functional_call

from bnfold.errors import UnsupportedModelError, UsageError, VerificationError
from bnfold.torch.capture.copying import shadow
from bnfold.torch.capture.kept_state import kept
from bnfold.torch.capture.wrappers import refuse_unsupported, unwrap
from bnfold.torch.fx.unwritten import unwritten
from bnfold.verification.runtime.devices import Device
from bnfold.verification.runtime.limits import run_here
from bnfold.verification.torch.run.devices import first_line, settings
from bnfold.verification.torch.run.evaluation import Float64, Moved, Placement, widened
from bnfold.verification.torch.run.flatten import flatten
from bnfold.verification.torch.run.sample import Sample

TorchLike: TypeAlias = Union[str, "os.PathLike[str]", torch.nn.Module, ExportedProgram]
State: TypeAlias = Mapping[str, torch.Tensor]
"""Parameters and buffers by name."""


class RunError(Exception):
    """A model does not run; the message is what PyTorch said."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One of the two models.

    Attributes:
        label: What a message calls it: the path, or "the original model", "the folded model".
        module: What runs; for a program, a module that is made of it.
        program: The program, or None.
    """

    label: str
    module: torch.nn.Module
    program: ExportedProgram | None

    @staticmethod
    def of(model: TorchLike, role: str) -> Subject:
        """Wrap what the caller gave.

        Args:
            model: A module, an exported program or the path of a .pt2 file.
            role: "original" or "folded".

        Raises:
            ModelLoadError: The file is missing or damaged.
            UnsafeModelError: Loading it would run code.
            UnsupportedModelError: It is a module that cannot be run with other parameters.
        """
        label = f"the {role} model"
        if isinstance(model, str | os.PathLike):
            from bnfold.torch.file.load import load_program

            path = Path(model)
            label, model = str(path), load_program(path)
        if isinstance(model, ExportedProgram):
            return Subject(label, cast(torch.nn.Module, model.module()), model)
        module = unwrap(model)
        refuse_unsupported(module)
        return Subject(label, module, None)

    @property
    def trains(self) -> bool:
        """Whether it is a module in training mode.

        What `ExportedProgram.module()` gives says so of itself, and refuses to be put into evaluation mode; but what it
        does was decided when it was exported.
        """
        return self.program is None and self.module.training and "eval" not in vars(self.module)

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers as the caller has them, a tied one once."""
        return {
            name: tensor.detach() for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers())
        }

    def runner(self, device: Device, *, float64: bool = False) -> Runner:
        """The model on a device.

        Args:
            device: Where to run.
            float64: Compute everything in float64.

        Raises:
            VerificationError: The module cannot be copied.
        """
        return Runner(self, device, float64=float64)


class Runner:
    """A copy of a model on a device.

    Args:
        subject: The model; nothing of it is changed, and nothing that a run keeps in its own copy remains there.
        device: Where to run.
        float64: Compute everything in float64.

    Raises:
        VerificationError: The module cannot be copied.
    """

    def __init__(self, subject: Subject, device: Device, *, float64: bool) -> None:
        self._float64, self._subject = float64, subject
        self._device = torch.device(device.kind)
        self._module = _structure(subject)
        self._state = {name: self._converted(tensor) for name, tensor in subject.state().items()}
        self._buffers = frozenset(name for name, _ in subject.module.named_buffers())

    def run(
        self, sample: Sample, *, moved: State | None = None, seed: int = 0, tf32: bool = False
    ) -> dict[str, object]:
        """Outputs by name, see `flatten`.

        Args:
            sample: What to call the model with.
            moved: Other values of some parameters and buffers.
            seed: Seed of the random numbers that the model may draw.
            tf32: Whether a GPU may shorten float32 products.

        Raises:
            RunError: The model does not run.
            VerificationError: It does not end in time.
        """
        with settings(tf32=tf32):
            return flatten(self._call(sample, moved or {}, seed))

    def placement(self, sample: Sample) -> Placement:
        """Run once and note what is computed where; nothing, if the model does not run while being looked at."""
        noted = Placement(self._device)
        try:
            with settings(tf32=False), noted:
                self._call(sample, {}, 0)
        except RunError:  # code that PyTorch compiles on the way, such as torch.cond outside of a program
            return Placement(self._device)
        return noted

    def reached(self, sample: Sample) -> frozenset[str]:
        """The outputs that some parameter leads to, as autograd sees it.

        Raises:
            RunError: The model does not run.
        """
        # Not the buffers: running statistics take no gradients.
        with settings(tf32=False), torch.enable_grad():
            tracked = {
                name: tensor.detach().requires_grad_().clone()
                for name, tensor in self._state.items()
                if name not in self._buffers and tensor.is_floating_point()
            }
            found = flatten(self._call(sample, tracked, 0), lambda tensor: tensor.requires_grad)
        return frozenset(name for name, requires_grad in found.items() if requires_grad is True)

    def _call(self, sample: Sample, moved: State, seed: int) -> object:
        # Runs must not see what others did to buffers.
        state = {name: self._converted(moved[name]) if name in moved else held for name, held in self._state.items()}
        state |= {name: state[name].clone() for name in self._buffers if name in state}
        args, kwargs = sample.moved(self._device, self._converted if self._float64 else None)
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed_all(seed)
        try:
            with self._modes(), kept(self._module), unwritten(state.values()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a model warns of is not about this comparison
                return run_here(lambda: functional_call(self._module, state, args, kwargs, tie_weights=True))
        except VerificationError:
            raise
        except Exception as error:  # a model may raise whatever it likes
            raise RunError(first_line(error)) from error

    def _converted(self, tensor: torch.Tensor) -> torch.Tensor:
        there = tensor.to(self._device)
        return widened(there) if self._float64 else there

    @contextmanager
    def _modes(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self._subject.program is not None:
                stack.enter_context(Moved(self._device))
            if self._float64:
                before = torch.get_default_dtype()
                stack.callback(torch.set_default_dtype, before)
                torch.set_default_dtype(torch.float64)
                stack.enter_context(Float64())
            yield


def check_modes(original: Subject, folded: Subject) -> None:
    """Refuse to compare a model in training mode with one in evaluation mode.

    Raises:
        UsageError: That is what they are.
    """
    if original.program is None and folded.program is None and original.trains != folded.trains:
        first, second = ("training", "evaluation") if original.trains else ("evaluation", "training")
        raise UsageError(
            f"the original model is in {first} mode, and the folded one in {second} mode",
            hint="Call .eval() on both.",
        )


def _structure(subject: Subject) -> torch.nn.Module:
    """A copy of a module with the very same tensors in it.

    Raises:
        VerificationError: It cannot be copied.
    """
    if subject.program is not None:
        return cast(torch.nn.Module, subject.program.module())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return shadow(subject.module)
    except UnsupportedModelError as error:
        raise VerificationError(
            f"{subject.label} cannot be copied, and is not run itself: {error}",
            hint="Verify an exported program of it (torch.export.export).",
        ) from error
