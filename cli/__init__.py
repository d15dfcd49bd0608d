"""The command line; installed as `bnfold.cli`, started as `bnfold`."""

from .main import main

__all__ = ["main"]
