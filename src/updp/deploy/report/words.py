"""Formats of numbers, times and claims in a report; URLs without passwords."""

import math
import re

from updp.measure import Timing
from updp.run.records import Result
from updp.tasks import Metric


def amount(value: float) -> str:
    """Format a count: `1,816`, `853 k`, `90.1 M`, `2.45 G`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{digits(value / size)} {unit}"
    return f"{value:,.0f}"


def digits(value: float, count: int = 3) -> str:
    """Format with `count` significant digits, no exponent: `0.0312`, `4.34`, `60.1`, `1234`."""
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}"
    return f"{value:.{min(max(count - 1 - math.floor(math.log10(abs(value))), 0), 9)}f}"


def ms(value: float) -> str:
    """Format milliseconds: `4.34 ms`."""
    return f"{digits(value)} ms"


def error(value: float | None) -> str:
    """Format a relative error: `0`, `3.8e-07`."""
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def signed(value: float, places: int = 2) -> str:
    """Format a number with its sign; the minus is as wide as a plus: `−1.30`."""
    return minus(f"{value:+.{places}f}")


def minus(number: str) -> str:
    """Replace the hyphen of a negative number by a minus sign as wide as a plus."""
    return number.replace("-", "−")


def times(timing: Timing) -> str:
    """Format median and quartiles of a ratio: `1.45x (1.43–1.48)`."""
    return f"{timing.median:.2f}x ({timing.low:.2f}–{timing.high:.2f})"


def quartiles(timing: Timing) -> str:
    """Format median and quartiles in ms: `41.4 (40.8–42.0)`."""
    return f"{digits(timing.median)} ({digits(timing.low)}–{digits(timing.high)})"


def share(new: float, old: float) -> str:
    """Format the relative change from `old`: `−17.2 %`."""
    return f"{signed(100 * (new / old - 1), 1)} %" if old else ""


def sampling_error(metric: Metric, value: float, images: int) -> float:
    """Half-width of the 95 % confidence interval of a metric in percent, in points.

    0 if unknown, which is so for metrics that are no share of the images, such as mean IoU. Else
    the normal approximation of the binomial, 1.96 sqrt(p (1 - p) / n), but at least 3 / n (the rule
    of three), because with no wrong image the approximation would be 0.
    """
    if not metric.of_samples:
        return 0.0
    if not images:
        return math.inf
    p = min(max(value / 100, 0.0), 1.0)
    return 100 * max(1.96 * math.sqrt(p * (1 - p) / images), 3 / images)


def with_noise(metric: Metric, value: float, images: int) -> str:
    """Format a metric with its sampling error, if that is known: `91.96 ± 1.8`."""
    noise = sampling_error(metric, value, images)
    return metric.number(value) + (f" ± {digits(noise, 2)}" if noise else "")


def speed(result: Result) -> str:
    """The claim about the speed-up, as far as its quartiles support it."""
    s = result.speedup
    if s.low > 1:
        return f"{s.median:.2f}x faster"
    if s.high < 1:
        return f"slower: {s.median:.2f}x the baseline's speed"
    return "no faster beyond the noise"


def accuracy(result: Result) -> str:
    """The change of the metric from the baseline, and whether it is within the sampling error."""
    points = change_of(result)
    if not points:
        return "the same as the baseline"
    noise = sampling_error(result.metric, result.merged.metric, result.test_images)
    inside = abs(result.merged.metric - result.baseline.metric) <= noise
    return f"{points}, within the sampling error" if inside else points


def change_of(result: Result) -> str:
    """The change of the metric from the baseline: `−1.30 points`; empty if there is none."""
    change = result.merged.metric - result.baseline.metric
    if change == 0:
        return ""
    return minus(result.metric.difference(change))


# Ends of parameter names, such as access_token.
_SECRET = r"passw(?:or)?d|pwd|token|secret|api[_-]?key"  # nosec B105
_USER = re.compile(r"(://[^:/@\s]*):\S*@")
_QUERY = re.compile(rf"([?&][\w-]*(?:{_SECRET})=)[^&\s]*", re.IGNORECASE)


def masked(text: str) -> str:
    """Replace passwords, tokens and keys in the URLs of a text by `***`."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1:***@", text))
