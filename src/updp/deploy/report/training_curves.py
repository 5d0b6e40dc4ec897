"""Training curves: losses and lambda of each stage that trained."""

import math
from collections.abc import Sequence

from updp.deploy.report.plot import Axis, Mark, Plot, Series, linear
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import digits

_MOST = 300  # marks of a curve


def training_plots(run: ReportedRun) -> list[Plot]:
    """The losses of each stage that trained, and lambda where it moves."""
    plots = []
    for stage, rows in run.training.items():
        aside = ("step", "lr", "gradient", "lambda")
        names = [name for name in rows[0] if name not in aside]
        styles = ("c-one", "c-two", "c-fuse", "c-fold")
        series = [_curve(name, rows, styles[i % 4]) for i, name in enumerate(names[: len(styles)])]
        x = linear("step", [row["step"] for row in rows], room=0.02)
        y = linear("loss", [m.y for s in series for m in s.marks])
        plots.append(Plot(f"loss-{stage}", f"Training, {stage}: loss", x, y, tuple(series)))
        progress = [row["lambda"] for row in rows if "lambda" in row]
        if progress:
            note = "0 is the block, 1 the pruned block."
            if min(progress) == 1:
                note += " Fitted blocks train as they will run: it is 1 throughout."
            curve = _curve("lambda", rows, "c-fold")
            y = Axis("lambda", -0.05, 1.05)
            title = f"Training, {stage}: lambda"
            plots.append(Plot(f"lambda-{stage}", title, x, y, (curve,), note))
    return plots


def _curve(name: str, rows: Sequence[dict[str, float]], style: str) -> Series:
    """Means of neighbours where there are too many rows to draw."""
    rows = [row for row in rows if math.isfinite(row.get(name, math.nan))]
    size = -(-len(rows) // _MOST) or 1
    marks = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        value = sum(row[name] for row in part) / len(part)
        last = part[-1]
        text = f"step {last['step']:.0f}\n{name}: {digits(value)}"
        text += "".join(f"\n{k}: {digits(last[k])}" for k in ("lr", "lambda") if k in last)
        marks.append(Mark(part[0]["step"], value, text))
    return Series(name, style, tuple(marks), line=True, dots=len(marks) <= 60)
