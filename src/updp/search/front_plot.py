"""The picture of a search: every plan's score over its cost, and the front."""

import math
from io import BytesIO
from pathlib import Path

from updp.errors import needs_extra
from updp.io.files import write_bytes
from updp.search.outcome import ScoredPlan, SearchResult

_NAMES = {"latency": "predicted latency", "macs": "MACs", "parameters": "parameters"}


def plot_front(outcome: SearchResult, file: Path) -> None:
    """Write an SVG. Costs are shares of the baseline's, on the outcome's axis.

    Raises UserError where matplotlib is missing.
    """
    try:
        import matplotlib  # takes half a second, which `updp --help` need not wait for
        from matplotlib.figure import Figure
    except ImportError as error:
        raise needs_extra(file.name, "matplotlib", "plot") from error

    def x(point: ScoredPlan) -> float:
        return float(getattr(point, outcome.axis) / getattr(outcome.baseline, outcome.axis))

    def y(point: ScoredPlan) -> float:
        return math.inf if point.score is None else point.score

    def last(point: ScoredPlan) -> float:
        return y(point) if point.fitted is None else point.fitted

    complete = [p for p in outcome.points if p.complete and p.score is not None]
    front = [outcome.points[i] for i in outcome.front]
    figure = Figure(figsize=(6.4, 4))
    axes = figure.add_subplot()
    axes.scatter([x(p) for p in complete], [y(p) for p in complete], s=8, color="0.7")
    axes.plot([x(p) for p in front], [y(p) for p in front], "o-", ms=4, label="front")
    refined = [p for p in outcome.points if p.fitted is not None]
    if refined:
        places = [x(p) for p in refined], [last(p) for p in refined]
        axes.scatter(*places, s=16, marker="D", color="C2", label="fitted and repaired")
    chosen = outcome.plan
    axes.plot([x(chosen)], [last(chosen)], "*", ms=14, color="C3", label="chosen")
    axes.set_xlabel(f"{_NAMES.get(outcome.axis, outcome.axis)}, share of the baseline's")
    axes.set_ylabel("score (lower is better)")
    if min([*map(y, complete), *map(last, refined)]) > 0:
        axes.set_yscale("log")
    axes.legend()
    axes.set_title(f"{len(outcome.points)} plans, budget {outcome.budget}", fontsize=10)
    figure.tight_layout()
    data = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "updp"}):  # the same plot is the same file
        figure.savefig(data, format="svg", metadata={"Date": None})
    write_bytes(file, data.getvalue())
