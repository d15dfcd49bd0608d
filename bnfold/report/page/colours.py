"""The colours of a page in the light and in the dark, and which of them stand on which."""

PALETTES = {
    "light": {
        "background": "#ffffff",
        "surface": "#f6f7f9",
        "border": "#d0d7de",
        "text": "#1b1f24",
        "muted": "#57606a",
        "bar": "#0b5cad",
        "bar-fail": "#b3122a",
        "limit": "#b3122a",
        "pass": "#116329",
        "pass-surface": "#dafbe1",
        "fail": "#a40e26",
        "fail-surface": "#ffebe9",
        "inconclusive": "#6e4400",
        "inconclusive-surface": "#fff8c5",
        "skipped": "#424a53",
        "skipped-surface": "#eaeef2",
    },
    "dark": {
        "background": "#0d1117",
        "surface": "#161b22",
        "border": "#30363d",
        "text": "#e6edf3",
        "muted": "#9da7b3",
        "bar": "#58a6ff",
        "bar-fail": "#ff7b72",
        "limit": "#ff7b72",
        "pass": "#7ee787",
        "pass-surface": "#12261e",
        "fail": "#ffa198",
        "fail-surface": "#2d1216",
        "inconclusive": "#e3b341",
        "inconclusive-surface": "#2b2110",
        "skipped": "#b1bac4",
        "skipped-surface": "#21262d",
    },
}

TEXT_PAIRS = (
    *((text, ground) for text in ("text", "muted", "limit") for ground in ("background", "surface")),
    *((verdict, f"{verdict}-surface") for verdict in ("pass", "fail", "inconclusive", "skipped")),
    *((verdict, "background") for verdict in ("pass", "fail", "inconclusive", "skipped")),
)
"""Text and what it stands on; WCAG 2.2, success criterion 1.4.3 asks for a contrast of 4.5."""

GRAPHIC_PAIRS = tuple((mark, ground) for mark in ("bar", "bar-fail", "limit") for ground in ("background", "surface"))
"""Marks of the chart and what they stand on; success criterion 1.4.11 asks for 3."""
