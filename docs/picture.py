"""The picture of a terminal in README.md and on the first page of the documentation.

    python docs/picture.py

Runs the command of `COMMAND` and writes what a terminal shows of it to docs/terminal.svg, with no fonts from elsewhere.
tests/docs/test_picture.py fails where the picture does not say what the command says today.
"""

import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

TOP = Path(__file__).resolve().parents[1]
PICTURE = TOP / "docs" / "terminal.svg"
COMMAND = "bnfold fold samples/digits_resnet.onnx -o digits_folded.onnx"
WIDTH = 80

_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def picture(said: str) -> str:
    """What a command says, colours included, as an SVG of a terminal."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, legacy_windows=False)
    console.print(Text.assemble(("$ ", "bold green"), (COMMAND, "bold")))
    console.print(Text.from_ansi(said.rstrip()), "\n", sep="")
    svg = console.export_svg(title="bnfold", theme=MONOKAI, unique_id="terminal")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*;", f"font-family: {_FONT};", svg)
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


def said_on_a_terminal() -> str:
    """What the command writes to a terminal, and the folded file to a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        model, output = TOP / "samples" / "digits_resnet.onnx", "digits_folded.onnx"
        (Path(folder) / "samples").mkdir()
        (Path(folder) / "samples" / model.name).write_bytes(model.read_bytes())
        words = [sys.executable, "-m", *shlex.split(COMMAND)]
        assert words[-1] == output
        ours, theirs = pty.openpty()
        with subprocess.Popen(words, cwd=folder, stdout=theirs, stderr=subprocess.DEVNULL) as running:
            os.close(theirs)
            parts = []
            while True:
                try:
                    part = os.read(ours, 4096)
                except OSError:  # what Linux says at the end
                    break
                if not part:
                    break
                parts.append(part)
            os.close(ours)
    if running.returncode:
        sys.exit(f"{COMMAND} left with exit code {running.returncode}")
    return b"".join(parts).decode().replace("\r\n", "\n")


if __name__ == "__main__":
    PICTURE.write_text(picture(said_on_a_terminal()), encoding="utf-8")
