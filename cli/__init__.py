"""The command line, installed as `bnfold.cli`: words come in, lines and an exit code go out; one file a command.

Nothing imports it, and what a command does is done by the package.
"""

from .main import main

__all__ = ["main"]
