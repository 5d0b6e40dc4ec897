"""Does a search's score say how accurate a plan is after it was trained?

    python -m benchmarks.search.correlation            # ResNet-56, CIFAR-10; needs ../shared/data
    python -m benchmarks.search.correlation --each 1 --epochs 0.05 --supernet-epochs 0.05 \\
        --out DIR/work --output DIR

Random plans of several sizes are scored twice: by the trained supernet (the paper) and by the
calibrated one without any training. Each plan is then trained alone, from the calibrated baseline,
and tested; merged or not makes no difference. Kendall's tau between score and error, over all plans
and within each size. Continues where it was killed. Results: results/correlation.json.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import kendalltau

from benchmarks.common.classifiers import top1
from benchmarks.common.data import ROOT, check_data
from benchmarks.common.output import Output, Result, device_name, make_parser
from benchmarks.search.bank import INHERITED, NETWORKS
from updp.io.files import read_json, write_json
from updp.search import Scorer
from updp.stages.context import Context
from updp.stages.subnet import train_progressively

SIZES = (3, 6, 9, 12)  # sites pruned


def measure(context: Context, plan: dict[str, str], folder: Path) -> Result:
    """Both scores of a plan, and its test accuracy once it is trained in `folder`."""
    scores = {}
    for name in ("supernet", "fitted"):  # trained, or calibrated alone
        net = context.make_supernet()
        if name == "supernet":
            context.load_weights(net, "supernet")
        scores[name] = Scorer(net, context.baseline, context.feed, context.recipe)(plan).score
    net, teacher = context.make_supernet(), copy.deepcopy(context.baseline)
    train_progressively(replace(context, root=folder), net, plan, teacher, context.feed)
    return {"blocks": len(plan), **scores, "top1": top1(net, context.feed.test()), "plan": plan}


def tau(rows: Sequence[Result], name: str) -> dict[str, float]:
    """Kendall's tau-b of a score with the error, over all rows and the mean within sizes."""
    sizes = {row["blocks"] for row in rows}
    groups = [[row for row in rows if row["blocks"] == size] for size in sizes]
    groups = [group for group in groups if len(group) > 1]

    def of_group(group: Sequence[Result]) -> float:
        return float(kendalltau([r[name] for r in group], [-r["top1"] for r in group])[0])

    return {"all": of_group(rows), "within": sum(map(of_group, groups)) / max(len(groups), 1)}


def write(rows: Sequence[Result], epochs: float, output: Output) -> None:
    """Write what was measured so far."""
    taus = {name: tau(rows, name) for name in ("supernet", "fitted")}
    print(taus, flush=True)
    device = device_name(torch.device("cpu"))
    result = {"device": device, "epochs": epochs, "plans": rows, "tau": taus}
    output.write("correlation", result)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--each", type=int, default=3, help="plans of each size")
    parser.add_argument("--epochs", type=float, default=1.0, help="of subnet training")
    parser.add_argument("--supernet-epochs", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/correlation")
    options = parser.parse_args(arguments)
    check_data()
    recipe = INHERITED.updated(
        "budget={blocks: 9}",
        f"supernet.epochs={options.supernet_epochs}",
        "subnet.start=baseline",
        f"subnet.epochs={options.epochs}",
    )
    context = (
        NETWORKS["resnet56"].open_finished_run(recipe, options.out / "run", last="supernet").context
    )
    offers = context.offers
    chance = random.Random(0)
    plans = [
        {name: chance.choice(offers[name]).candidate.label for name in sorted(sites)}
        for size in SIZES
        for _ in range(options.each)
        for sites in [chance.sample(list(offers), size)]
    ]
    rows = []
    for number, plan in enumerate(plans):
        file = options.out / f"plan-{number}.json"
        if not file.exists():
            write_json(file, measure(context, plan, options.out / f"train-{number}"))
        rows.append(read_json(file))
        print(number, {k: v for k, v in rows[-1].items() if k != "plan"}, flush=True)
        if number:
            write(rows, options.epochs, options.output)


if __name__ == "__main__":
    main()
