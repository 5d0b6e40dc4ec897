"""The metric of a task: its name, unit and direction."""

from pydantic import BaseModel


class Metric(BaseModel, frozen=True):
    """The measure of a model: its name, unit and direction.

    >>> updp.Metric(name="perplexity", unit="", higher_is_better=False).text(12.3456)
    '12.35'
    """

    name: str  # name of the measure, such as `top-1`
    unit: str = "%"  # unit of its values; empty where they have none
    higher_is_better: bool = True  # whether a larger value is the better one
    # Whether it is a share of samples, so that its sampling error is known.
    of_samples: bool = False

    @property
    def key(self) -> str:
        """The name for charts: `top1`, `mean_IoU`."""
        return self.name.replace("-", "").replace(" ", "_")

    @property
    def title(self) -> str:
        """Name and unit for the head of a column: `top-1 %`."""
        return f"{self.name} {self.unit}".strip()

    @property
    def heading(self) -> str:
        """The name with a capital letter, to begin a sentence: `Top-1`."""
        return self.name[:1].upper() + self.name[1:]

    def text(self, value: float) -> str:
        """A value with its unit: `91.96 %`."""
        return f"{self.number(value)} {self.unit}".strip()

    def difference(self, value: float) -> str:
        """A difference of two values: `-1.30 points`, or `+0.042 m`."""
        return f"{self.signed(value)} {'points' if self.unit == '%' else self.unit}".strip()

    def signed(self, value: float) -> str:
        """A difference of two values, without its unit."""
        if self.unit == "%":
            return f"{value:+.2f}"
        return f"{'-' if value < 0 else '+'}{self.number(abs(value))}"

    def number(self, value: float) -> str:
        """A value without its unit: two decimals, or three digits if it is small."""
        return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"
