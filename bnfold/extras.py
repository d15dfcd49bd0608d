"""Packages that only some of the work needs: extras such as `bnfold[torch]` bring them, and an ONNX file needs none."""

from importlib import import_module

from bnfold.errors import DeviceError

_NAMES = {"torch": "PyTorch"}


def require(package: str, what: str, extra: str = "torch") -> None:
    """Imports a package of an extra.

    Args:
        package: Its import name.
        what: What needs it, as the subject of "needs ...".
        extra: The extra that brings it.

    Raises:
        DeviceError: It is not installed, or cannot be imported.
    """
    name = _NAMES.get(package, package)
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise _broken(name, what, extra, error) from error
        message = f"{what} needs {name}, which is not installed"
        raise DeviceError(message, hint=f"Install it with: pip install 'bnfold[{extra}]'") from error
    except (ImportError, OSError) as error:
        raise _broken(name, what, extra, error) from error


def _broken(name: str, what: str, extra: str, error: Exception) -> DeviceError:
    said = " ".join(str(error).split())[:200]
    message = f"{what} needs {name}, which cannot be imported: {said}"
    return DeviceError(message, hint=f"Install it anew with: pip install --force-reinstall 'bnfold[{extra}]'")
