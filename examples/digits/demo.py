"""Prune a small ResNet and a small ViT on handwritten digits, and print one table for both.

    python examples/digits/demo.py

Nothing is downloaded: the 1,797 images come with scikit-learn and the trained baselines with
`updp` (`train.py` made them). Killed, it goes on where it was; run again, it prints the table.
The exit code is 1 where a merged model is slower or much less accurate than its baseline.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

import updp
from updp.cli.tables import result_table
from updp.errors import MergeError, UserError
from updp.io.bars import Bars
from updp.run.records import Result

HERE = Path(__file__).parent
MODELS = ("resnet", "vit")
MAY_LOSE = 2.0  # points of top-1


def main() -> int:
    """Prune both models, print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run directories")
    parser.add_argument("--device", help="such as cpu; CUDA if there is one")
    parser.add_argument("--fresh", action="store_true", help="start over")
    options = parser.parse_args()
    torch.set_num_threads(1)  # quickest for models this small, and least disturbed by others
    console = Console(width=None if sys.stdout.isatty() else 140)
    runs: dict[str, updp.Pruned] = {}
    try:
        for name in MODELS:
            console.rule(name, align="left")
            with Bars(console) as bars:
                runs[name] = updp.prune(
                    f"zoo/digits-{name}",
                    "digits",
                    updp.Recipe.load(HERE / f"{name}.yaml"),
                    out=options.out / name,
                    device=options.device,
                    fresh=options.fresh,
                    progress=bars,
                )
    except (UserError, MergeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    show(console, runs)
    results = {name: run.result for name, run in runs.items()}
    for name, result in results.items():
        for line in shortcomings(name, result):
            print(f"demo: {line}", file=sys.stderr)
    return 0 if all(map(is_fine, results.values())) else 1


def show(console: Console, runs: dict[str, updp.Pruned]) -> None:
    """The table, then for each model top-1 by stage, what was pruned and where the result is."""
    first = next(iter(runs.values())).result
    title = f"Handwritten digits, {first.test_images} test images; {first.device}"
    console.rule("result", align="left")
    console.print(result_table({name: run.result for name, run in runs.items()}, title))
    for name, run in runs.items():
        stages = ", ".join(f"{stage} {v:.1f}" for stage, v in run.result.by_stage.items())
        console.print(
            f"\n{name}\n  top-1 %: {stages}\n"
            f"  pruned {len(run.plan)} sites: {', '.join(run.plan.choices)}\n"
            f"  results: {run.out}\n  on a page: {updp.report(run.out)}",
            highlight=False,
            soft_wrap=True,
        )


def is_fine(result: Result) -> bool:
    """Whether the merged model kept its accuracy, and is not slower than its baseline.

    On a busy machine a speed-up may drown in the noise, which is no failure.
    """
    return result.speedup.high > 1 and -result.change <= MAY_LOSE


def shortcomings(name: str, result: Result) -> list[str]:
    """What a merged model must be and is not, a line each."""
    found, lost = [], -result.change
    if not result.faster:
        quartile, median = result.speedup.low, result.speedup.median
        found.append(
            f"the merged {name} is not faster beyond the noise: {median:.2f}x, "
            f"lower quartile {quartile:.2f}x; is the machine busy?"
        )
    if lost > MAY_LOSE:
        found.append(f"the merged {name} lost {lost:.1f} points of top-1, more than {MAY_LOSE:g}")
    return found


if __name__ == "__main__":
    sys.exit(main())
