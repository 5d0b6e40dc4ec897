"""Stage 3 trained in float32, bfloat16 and float16 on the same plan: what is lost in top-1.

    python -m benchmarks.accuracy.precision                  # digits and ResNet-20, about an hour
    python -m benchmarks.accuracy.precision --only digits

The plan is searched once and given to all. Top-1 of the merged model on the test split, in percent;
on CIFAR-10 each training is half an epoch. Results: results/precision-NETWORK.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

import updp
from benchmarks.common.data import DATA, ROOT, check_data, cifar_resnet
from benchmarks.common.output import Result, device_name, make_parser
from updp.recipe import Recipe

PRECISIONS = "float32", "bfloat16", "float16"
_DIGITS = ROOT / "examples" / "digits"
# Model, weights, data, and the recipe's settings.
CASES = {
    "digits": (
        f"{_DIGITS / 'models.py'}:resnet",
        _DIGITS / "resnet.safetensors",
        "digits",
        ("budget={blocks: 2}", "subnet.epochs=8"),
    ),
    "resnet20": (
        *cifar_resnet("resnet20"),
        str(DATA / "cifar10_lossless"),
        ("budget={blocks: 4}", "search.evaluations=30", "search.refined=8", "subnet.epochs=0.5"),
    ),
}


def compare(name: str, seeds: int, folder: Path) -> Result:
    """Top-1 of each precision and seed, and the mean loss beside float32, in points."""
    model, weights, data, settings = CASES[name]
    recipe = Recipe().updated(*settings)
    fitted = updp.prune(
        model, data, recipe.updated("subnet.epochs=0"), out=folder / "fit", weights=weights
    )
    rows: dict[str, list[float | None]] = {}
    for precision in PRECISIONS:
        rows[precision] = []
        for seed in range(seeds):
            settled = recipe.updated(f"subnet.precision={precision}", f"seed={seed}")
            pruned = updp.prune(
                model,
                data,
                settled,
                out=folder / f"{precision}-{seed}",
                weights=weights,
                plan=fitted.plan,
            )
            rows[precision].append(pruned.result.merged.metric)
        print(name, precision, rows[precision], flush=True)
    means = {
        precision: mean(t for t in found if t is not None) for precision, found in rows.items()
    }
    return {
        "settings": settings,
        "baseline": fitted.result.baseline.metric,
        "fitted": fitted.result.merged.metric,
        "top1": rows,
        "loss": {precision: means["float32"] - value for precision, value in means.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.only != "digits":
        check_data()
    for name in [options.only] if options.only else CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(name, options.seeds, Path(folder))
        device = device_name(torch.device("cpu"))
        options.output.write(f"precision-{name}", {"device": device, **found})


if __name__ == "__main__":
    main()
