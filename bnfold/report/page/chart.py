"""How far each folded layer is off, as bars on a logarithmic axis: the worst first, the limit drawn in.

Lengths along the axis are percentages of the width, so that the chart fits any screen and its letters keep
their size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.report.page.wording import figure
from bnfold.report.records import Site, Verdict

_DECADES_BELOW, _DECADES_ABOVE = 4, 8  # of the limit: one odd bar does not press all others together
_NAME_LENGTH = 36


@dataclass(frozen=True, slots=True)
class Bar:
    """One layer.

    Attributes:
        name: Its full name.
        label: Its name, short enough for a narrow screen.
        value: Its ratio, as text.
        percent: Where the bar ends.
        failed: Whether it is over the limit.
    """

    name: str
    label: str
    value: str
    percent: float
    failed: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """The bars and their axis.

    Attributes:
        bars: The layers, worst first.
        ticks: Powers of ten, where they are and what they are called.
        limit: Where the limit is.
        limit_label: What it is called.
    """

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    limit: float
    limit_label: str


def chart_of(sites: Sequence[Site], limit: float) -> Chart | None:
    """The chart of the sites that were measured; None if none was.

    Args:
        sites: All sites.
        limit: The largest ratio that passes.
    """
    measured = sorted(
        ((site, site.ratio) for site in sites if site.ratio is not None), key=lambda pair: pair[1], reverse=True
    )
    if not measured:
        return None
    sizes = [ratio for _, ratio in measured if 0 < ratio < math.inf]
    middle = math.log10(limit)
    highest = math.ceil(min(math.log10(max([*sizes, limit])) + 0.3, middle + _DECADES_ABOVE))
    lowest = math.floor(max(math.log10(min([*sizes, limit])), middle - _DECADES_BELOW))

    def percent(ratio: float) -> float:
        if ratio == math.inf:
            return 100.0
        place = lowest if ratio <= 0 else math.log10(ratio)
        return round(100 * min(max((place - lowest) / (highest - lowest), 0.0), 1.0), 2)

    bars = tuple(
        Bar(site.name, shortened(site.name), figure(ratio), percent(ratio), site.verdict is Verdict.FAIL)
        for site, ratio in measured
    )
    ticks = tuple((percent(10.0**power), _power(power)) for power in range(lowest, highest + 1))
    return Chart(bars, ticks, percent(limit), f"limit {limit:g}")


def shortened(name: str) -> str:
    """A name cut in its middle: names of one network differ at both ends."""
    if len(name) <= _NAME_LENGTH:
        return name
    half = (_NAME_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _power(exponent: int) -> str:
    return f"{10**exponent:g}" if -3 <= exponent <= 3 else f"1e{exponent}"
