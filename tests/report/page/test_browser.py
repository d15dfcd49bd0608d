"""Pages in a real Chromium: nothing on the console, and nothing to scroll sideways from 380 to 1400 pixels."""

import html as entities
import json
import re
import shutil
import subprocess

import pytest
import reports

from bnfold.report.page.rendering import html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (380, 760, 1400)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

MEASURE = """
window.onload = () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach((part) => { part.open = true; });
    const root = page.documentElement;
    const wide = [...page.querySelectorAll("body *")].filter(
      (part) => part.getBoundingClientRect().right > root.clientWidth + 0.5);
    return {
      name: frame.name,
      excess: root.scrollWidth - root.clientWidth,
      wide: wide.map((part) => part.outerHTML.slice(0, 80)),
      background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    };
  });
  document.body.textContent = "found " + JSON.stringify(found) + " end";
};
"""


def measured(pages, folder, *, dark=False):
    """What Chromium finds of each page at each width, and what it says on its console."""
    frames = [
        f'<iframe name="{name} at {width}" style="width:{width}px" srcdoc="{entities.escape(text)}"></iframe>'
        for name, text in pages.items()
        for width in WIDTHS
    ]
    harness = folder / "harness.html"
    harness.write_text(f"<meta charset=utf-8><script>{MEASURE}</script><body>{''.join(frames)}", encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    words = [CHROMIUM, *flags.split(), scheme, f"--user-data-dir={folder / 'profile'}", harness.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=True)
    text = entities.unescape(re.search(r"found (\[.*\]) end", done.stdout).group(1))
    return json.loads(text), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_and_say_nothing_on_the_console(tmp_path, dark):
    found, console = measured({name: html(report) for name, report in reports.ALL.items()}, tmp_path, dark=dark)
    assert console == []
    assert len(found) == len(reports.ALL) * len(WIDTHS)
    assert [page for page in found if page["excess"] > 0] == []
    assert {page["background"] for page in found} == {"rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)"}


def test_a_page_that_does_not_fit_or_complains_is_found(tmp_path):
    wide = '<!doctype html><body><div style="width:500px">wide</div><script>console.error("no")</script>'
    found, console = measured({"wide": wide}, tmp_path)
    assert [page["name"] for page in found if page["excess"] > 0] == ["wide at 380"]
    assert len(console) == len(WIDTHS)
