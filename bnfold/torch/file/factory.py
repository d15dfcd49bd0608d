"""A module from its code: `package.module:factory`, as web servers name their applications."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch

from bnfold.errors import ModelLoadError, UsageError, perhaps
from bnfold.model_kind import is_import_path
from bnfold.torch.capture.wrappers import unwrap

_NOTHING = object()


def build_module(import_path: str, arguments: Mapping[str, object] | None = None) -> torch.nn.Module:
    """Import a module of PyTorch, or call what makes one, and put it into inference mode.

    Args:
        import_path: `package.module:name`. The name, which may have dots, is that of a function or a class that gives
            an nn.Module when called, or of an nn.Module. Importing runs the code.
        arguments: Keyword arguments for the call.

    Returns:
        The module after `eval()`, without what DataParallel or torch.compile put around it.

    Raises:
        UsageError: The path is malformed, or the arguments do not fit.
        ModelLoadError: The code cannot be imported, fails, or gives something else.
    """
    if not is_import_path(import_path):
        raise UsageError(
            f"{import_path!r} is no import path",
            hint="Write package.module:factory, such as torchvision.models:resnet50.",
        )
    found = _attribute(import_path)
    given = dict(arguments or {})
    if isinstance(found, torch.nn.Module):
        if given:
            raise UsageError(f"{import_path} is a module already, and takes no arguments")
        return _in_inference_mode(found, import_path)
    if not callable(found):
        raise ModelLoadError(
            f"{import_path} is of type {type(found).__name__}, neither an nn.Module nor a function that makes one."
        )
    _require_arguments(found, given, import_path)
    with _said_of(f"{import_path} failed"):
        made = cast(object, found(**given))
    if not isinstance(made, torch.nn.Module):
        raise ModelLoadError(
            f"{import_path} gave something of type {type(made).__name__}, not an nn.Module.",
            hint="Write a function that returns the module alone.",
        )
    return _in_inference_mode(made, import_path)


def _in_inference_mode(module: torch.nn.Module, import_path: str) -> torch.nn.Module:
    """A module after `eval()`, whatever that returns, without what is put around it."""
    inner = unwrap(module)
    with _said_of(f"eval() of what {import_path} gives failed"):
        inner.eval()
    return inner


def _attribute(import_path: str) -> object:
    module_name, _, attributes = import_path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (module_name == missing or module_name.startswith(f"{missing}.")):
            hint = "Modules are looked for in the current folder, and where Python is installed."
            if module_name.endswith(".py"):
                hint = f"Write {module_name.removesuffix('.py')}:{attributes}, without .py."
            raise ModelLoadError(f"There is no module {missing!r} to import.", hint=hint) from error
        raise ModelLoadError(f"Importing {module_name} failed: {_said(error)}") from error
    for name in attributes.split("."):
        with _said_of(f"{module_name} does not give {attributes!r}"):
            inner = getattr(found, name, _NOTHING)
            others = dir(found) if inner is _NOTHING else []
        if inner is _NOTHING:
            raise ModelLoadError(f"{module_name} has no {attributes!r}.", hint=perhaps(name, others))
        found = inner
    return found


def _require_arguments(factory: Callable[..., object], given: Mapping[str, object], import_path: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # written in C, or with a broken signature: the call itself will tell
        return
    try:
        signature.bind(**given)
    except TypeError as error:
        raise UsageError(
            f"{import_path}{signature} cannot be called with {', '.join(given) or 'no arguments'}: {error}",
            hint="Give keyword arguments as JSON: --kwargs '{\"width\": 64}'.",
        ) from error


@contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Says in one sentence that code of somebody else failed, whatever it raises."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ModelLoadError(f"{what}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:300]
    except Exception:  # noqa: BLE001 - it may not even know how to be shown
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
