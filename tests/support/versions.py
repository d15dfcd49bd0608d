"""Versions of the tools that a benchmark compares."""

from importlib import metadata

PEERS = ("bnfold", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "onnxslim", "onnxsim", "openvino", "torch")


def versions() -> str:
    """Name and version of each that is installed, from its metadata."""
    installed = {item.name: item.version for item in metadata.distributions() if item.name in PEERS}
    return ", ".join(f"{name} {installed[name]}" for name in PEERS if name in installed)
