"""The plot of a search: score over cost of every plan, and the Pareto front."""

import math
from io import BytesIO
from pathlib import Path

from updp.errors import needs_extra
from updp.io.files import write_bytes
from updp.search.outcome import ScoredPlan, SearchResult

_NAMES = {"latency": "predicted latency", "macs": "MACs", "parameters": "parameters"}


def plot_front(result: SearchResult, file: Path) -> None:
    """Write an SVG of scores over costs, as fractions of the baseline's cost in `result.axis`.

    Raises UserError if matplotlib is missing.
    """
    try:
        import matplotlib  # takes half a second, which `updp --help` should not
        from matplotlib.figure import Figure
    except ImportError as error:
        raise needs_extra(file.name, "matplotlib", "plot") from error

    def x(point: ScoredPlan) -> float:
        return float(getattr(point, result.axis) / getattr(result.baseline, result.axis))

    def y(point: ScoredPlan) -> float:
        return math.inf if point.score is None else point.score

    complete = [p for p in result.points if p.complete and p.score is not None]
    front = [result.points[i] for i in result.front]
    refined = [p for p in result.points if p.fitted is not None]
    figure = Figure(figsize=(6.4, 4))
    axes = figure.add_subplot()
    axes.scatter([x(p) for p in complete], [y(p) for p in complete], s=8, color="0.7")
    axes.plot([x(p) for p in front], [y(p) for p in front], "o-", ms=4, label="front")
    if refined:
        coordinates = [x(p) for p in refined], [p.last_score for p in refined]
        axes.scatter(*coordinates, s=16, marker="D", color="C2", label="fitted and repaired")
    chosen = result.plan
    axes.plot([x(chosen)], [chosen.last_score], "*", ms=14, color="C3", label="chosen")
    axes.set_xlabel(f"{_NAMES.get(result.axis, result.axis)}, share of the baseline's")
    axes.set_ylabel("score (lower is better)")
    if min([*map(y, complete), *(p.last_score for p in refined)], default=0.0) > 0:
        axes.set_yscale("log")
    axes.legend()
    axes.set_title(f"{len(result.points)} plans, budget {result.budget}", fontsize=10)
    figure.tight_layout()
    data = BytesIO()
    # A fixed salt and no date, so that the same plot always gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "updp"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    write_bytes(file, data.getvalue())
