"""Numbers, times and claims as a report writes them; URLs without passwords."""

import math
import re

from updp.measure import Timing
from updp.run.records import Result
from updp.tasks import Metric


def amount(value: float) -> str:
    """A count: `1,816`, `853 k`, `90.1 M`, `2.45 G`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{digits(value / size)} {unit}"
    return f"{value:,.0f}"


def digits(value: float, count: int = 3) -> str:
    """`count` significant digits and no exponent: `0.0312`, `4.34`, `60.1`, `1234`."""
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}"
    return f"{value:.{min(max(count - 1 - math.floor(math.log10(abs(value))), 0), 9)}f}"


def ms(value: float) -> str:
    """`4.34 ms`."""
    return f"{digits(value)} ms"


def error(value: float | None) -> str:
    """A relative error: `0`, `3.8e-07`."""
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def signed(value: float, places: int = 2) -> str:
    """A number with its sign, a minus as wide as a plus: `−1.30`."""
    return minus(f"{value:+.{places}f}")


def minus(number: str) -> str:
    """A number's minus as wide as a plus."""
    return number.replace("-", "−")


def times(timing: Timing) -> str:
    """`1.45x (1.43–1.48)`: median and quartiles of a ratio."""
    return f"{timing.median:.2f}x ({timing.low:.2f}–{timing.high:.2f})"


def quartiles(timing: Timing) -> str:
    """`41.4 (40.8–42.0)`: median and quartiles in ms."""
    return f"{digits(timing.median)} ({digits(timing.low)}–{digits(timing.high)})"


def share(new: float, old: float) -> str:
    """`−17.2 %`: the change from `old`."""
    return f"{signed(100 * (new / old - 1), 1)} %" if old else ""


def sampling_error(metric: Metric, value: float, images: int) -> float:
    """Half of the 95 % confidence interval of a metric in percent, in points.

    0 where it is not known: of a metric that is no share of the images, such as mean IoU. Else the
    normal approximation of the binomial, 1.96 sqrt(p (1 - p) / n); at least 3 / n, the rule of
    three, for with no image wrong the approximation would be 0.
    """
    if not metric.of_samples:
        return 0.0
    if not images:
        return math.inf
    p = min(max(value / 100, 0.0), 1.0)
    return 100 * max(1.96 * math.sqrt(p * (1 - p) / images), 3 / images)


def with_noise(metric: Metric, value: float, images: int) -> str:
    """`91.96 ± 1.8`: a metric with its sampling error, where that is known."""
    noise = sampling_error(metric, value, images)
    return metric.number(value) + (f" ± {digits(noise, 2)}" if noise else "")


def speed(result: Result) -> str:
    """The claim about the speed-up, which its quartiles must support."""
    s = result.speedup
    if s.low > 1:
        return f"{s.median:.2f}x faster"
    if s.high < 1:
        return f"slower: {s.median:.2f}x the baseline's speed"
    return "no faster beyond the noise"


def accuracy(result: Result) -> str:
    """The change of the metric from the baseline's, and whether the sampling error explains it."""
    points = change_of(result)
    if not points:
        return "the same as the baseline"
    noise = sampling_error(result.metric, result.merged.metric, result.test_images)
    inside = abs(result.merged.metric - result.baseline.metric) <= noise
    return f"{points}, within the sampling error" if inside else points


def change_of(result: Result) -> str:
    """`−1.30 points`: the change of the metric from the baseline's; empty where there is none."""
    change = result.merged.metric - result.baseline.metric
    if change == 0:
        return ""
    return minus(result.metric.difference(change))


# Ends of names, as in access_token.
_SECRET = r"passw(?:or)?d|pwd|token|secret|api[_-]?key"  # nosec B105
_USER = re.compile(r"(://[^:/@\s]*):\S*@")
_QUERY = re.compile(rf"([?&][\w-]*(?:{_SECRET})=)[^&\s]*", re.IGNORECASE)


def masked(text: str) -> str:
    """The text with passwords, tokens and keys of its URLs replaced by `***`."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1:***@", text))
