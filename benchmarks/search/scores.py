"""On which held-out images should fitted and repaired plans be scored?

    python -m benchmarks.search.scores                    # needs ../shared/data
    python -m benchmarks.search.scores --case resnet20:3 --evaluations 20 \\
        --out DIR/work --output DIR

Held-out images are of the training split, and a baseline may know those by heart. So the second
part of a search (search.refined) is done twice from the same first part: on the images as they are,
and on means of two of them, too (search.blended). Each time the chosen plan is fitted as stage 3
begins, and its KL from the baseline and its top-1 are taken on images that the baseline never saw:
all 846 lossless test images, and 2,000 JPEGs of the whole test split (distorted, and few of them
the same). The recipe is the default with 100 evaluations; nothing is trained. Continues where it
was killed. Results: results/scores.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean

from benchmarks.common.classifiers import accuracy, predict
from benchmarks.common.data import DATA, ROOT, check_data, cifar_resnet
from benchmarks.common.output import Output, Result, make_parser
from updp.data.batches import Batch
from updp.data.feed import Feed
from updp.io.files import read_json, write_json
from updp.io.progress import Silent
from updp.recipe import Recipe
from updp.run.given import Given
from updp.run.inputs import open_inputs
from updp.run.pipeline import open_run_directory
from updp.search import (
    Evaluated,
    FittedScorer,
    ScoreFile,
    Scorer,
    SearchTask,
    refine,
    score_missing,
    search,
    within,
)
from updp.search.space import Genome
from updp.stages.context import RunInputs
from updp.supernet import fit_plan
from updp.tasks.losses import distillation

CASES = ("resnet32:5", "resnet44:7")  # a pretrained network, and how many of its sites are pruned
KINDS = {"plain": False, "blended": True}
IMAGES = 2000


class Case:
    """A network, and what the first part of a search found for it."""

    def __init__(self, network: str, sites: int, evaluations: int, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.recipe = Recipe().updated(
            f"budget={{blocks: {sites}}}", f"search.evaluations={evaluations}"
        )
        run = open_run_directory(self._inputs("cifar10_lossless"), folder / "run", last="supernet")
        run.until("supernet")
        self.context = run.context
        self.net = self.context.load_weights(self.context.net, "supernet")
        self.images = {
            "test": first_batches(self.context.feed),
            "jpeg": first_batches(self._inputs("cifar10").feed),
        }
        self.baseline_logits = {
            kind: predict(self.context.baseline, batches)[0]
            for kind, batches in self.images.items()
        }
        self.task = SearchTask(
            self.context.space, self.context.limits(), self.recipe.search, self.recipe.seed
        )

    def _inputs(self, data: str) -> RunInputs:
        model, weights = cifar_resnet(self.network)
        given = Given(model, DATA / data, weights=weights)
        return open_inputs(given, self.recipe, device="cpu")

    @cached_property
    def alone(self) -> dict[Genome, Evaluated]:
        """Scores of plans whose candidates were fitted alone."""
        scorer = Scorer(self.net, self.context.baseline, self.context.feed, self.recipe)
        space = self.task.space
        file = ScoreFile(self.folder / "alone.jsonl")
        known = search(self.task, scorer, file, Silent())
        singles = [space.keep, *space.singles()]
        return known | score_missing(singles, self.task, scorer, file, Silent())

    def measure(self, blended: bool) -> Result:
        """The plan that is chosen, and its figures once it is fitted on all calibration images."""
        recipe, feed = self.recipe.updated(f"search.blended={blended}"), self.context.feed
        judge = FittedScorer(self.net, self.context.baseline, feed, recipe)
        file = ScoreFile(self.folder / f"blended {blended}.jsonl")
        refined = refine(self.task, self.alone, judge, file, Silent())
        chosen = within(refined.values(), self.task, self.task.limits)[0]
        choices = self.task.space.choices(chosen.genome)
        fit_plan(self.net, choices, feed.calibration(recipe.fit.images), recipe.fit)
        self.net.choose(choices)
        figures = {kind: self._figures(kind) for kind in self.images}
        self.context.load_weights(self.net, "supernet")
        return {"plan": choices, "score": chosen.score.score, **figures}

    def _figures(self, kind: str) -> dict[str, float]:
        """KL of the net from the baseline on images of this kind, and the accuracy of both."""
        logits, labels = predict(self.net, self.images[kind])
        baseline = self.baseline_logits[kind]
        kl = float(distillation(logits.double(), baseline.double()))
        return {
            "kl": kl,
            "top1": accuracy(logits, labels),
            "baseline_top1": accuracy(baseline, labels),
        }


def first_batches(feed: Feed) -> list[Batch]:
    """Batches of test images and labels: at least IMAGES images, or all that there are."""
    batches: list[Batch] = []
    for batch in feed.test():
        batches.append(batch)
        if sum(len(labels) for _, labels in batches) >= IMAGES:
            break
    return batches


def write(folder: Path, output: Output) -> None:
    """Write all that was measured, and the ratios of KL: below 1 blended is better."""
    cases: dict[str, Result] = {}
    for file in sorted(folder.glob("*/*.json")):
        cases.setdefault(file.parent.name, {})[file.stem] = read_json(file)
    ratios = {
        images: {
            name: case["blended"][images]["kl"] / case["plain"][images]["kl"]
            for name, case in cases.items()
            if case.keys() == KINDS.keys()
        }
        for images in ("test", "jpeg")
    }
    for images, each in ratios.items():
        shown = {name: round(ratio, 2) for name, ratio in each.items()}
        print(images, shown, "mean", round(mean(each.values()), 3) if each else None)
    output.write("scores", {"ratios": ratios, "cases": cases})


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--case", nargs="+", default=CASES, help="network:sites")
    parser.add_argument("--evaluations", type=int, default=100, help="of the first part")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/scores")
    options = parser.parse_args(arguments)
    check_data()
    for name in options.case:
        network, sites = name.split(":")
        folder = options.out / f"{network}-{sites}"
        case: Case | None = None
        for kind, blended in KINDS.items():
            file = folder / f"{kind}.json"
            if not file.exists():
                case = case or Case(network, int(sites), options.evaluations, folder)
                write_json(file, case.measure(blended))
            row = read_json(file)
            print(name, kind, {k: v for k, v in row.items() if k != "plan"}, flush=True)
    write(options.out, options.output)


if __name__ == "__main__":
    main()
