"""Pages in a real headless Chromium, each in frames of several widths, and what a script finds of them."""

import html as entities
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needed = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

HARNESS = """
window.onload = async () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach((part) => { part.open = true; });
    found.push({name: frame.name, ...await (%s)(frame.contentWindow, page)});
  }
  document.body.textContent = "found " + JSON.stringify(found) + " end";
};
"""


def found_in(pages, script, folder, *, widths, dark=False):
    """What a function of a window and its document gives for each page at each width, and what the console says."""
    frames = [
        f'<iframe name="{name} at {width}" style="width:{width}px" srcdoc="{entities.escape(text)}"></iframe>'
        for name, text in pages.items()
        for width in widths
    ]
    harness = folder / "harness.html"
    harness.write_text(f"<meta charset=utf-8><script>{HARNESS % script}</script><body>{''.join(frames)}", "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    flags += f" --virtual-time-budget=100000 --blink-settings=preferredColorScheme={0 if dark else 1}"
    words = [CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'profile'}", harness.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    text = entities.unescape(re.search(r"found (\[.*\]) end", done.stdout).group(1))
    return json.loads(text), [line for line in done.stderr.splitlines() if "CONSOLE" in line]
