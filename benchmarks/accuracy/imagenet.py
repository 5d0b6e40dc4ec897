"""Pretrained ImageNet networks from a thousand images: updp and other pruners at equal latency.

    # on a quiet CPU, in pieces; nothing is trained
    for i in $(seq 99); do python -m benchmarks.accuracy.imagenet; done
    # one network at one point
    python -m benchmarks.accuracy.imagenet --network deit-tiny --points 0.8 --minutes 60

All methods see the 1,000 images of imagenet_sample, and the 1,300 of imagenet_val in the end only:
top-1, its difference from the baseline's on the same images with a 95 % interval, and the mean KL
divergence from the baseline's logits. Each prunes to its largest model within a share of the
baseline's latency, as in `versus`, which has the other options. `--epochs 8` trains all models
alike, to the baseline's logits and features. Other depth pruners choose among updp's candidates;
"with updp's fit" other methods' models are fitted and repaired as updp's own are.
Results: results/imagenet-NETWORK.json, docs/results/imagenet.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy.baselines import IMAGENET
from benchmarks.accuracy.depth_rivals import adding_up, dropping, searching, shrinking
from benchmarks.accuracy.methods import FREE, UPDP
from benchmarks.accuracy.rivals import Channels, Plans, Rival
from benchmarks.accuracy.trials import Trial
from benchmarks.accuracy.versus import Versus, add_options, compare
from benchmarks.common.data import ROOT
from benchmarks.common.markdown import quartiles, table
from benchmarks.common.output import Result, device_name, make_parser

INTRO = """# Pretrained ImageNet networks, from a thousand images

Made by `python -m benchmarks.accuracy.imagenet`, which says how. "Lost" are points of top-1 on the
1,300 images of imagenet_val, with a 95 % interval of the paired difference.
"""


class ImageNetMap(Versus):
    """All methods on one network; see `Versus`."""

    def contenders(self, point: float) -> Iterator[Rival]:
        """See `Versus`; and what other pruners choose with updp's own fit."""
        subject, clock = self.subject, self.clock
        yield searching(subject, self.folder / "searching", clock, self.stopwatch, point)
        for kind in ("magnitude", "taylor"):
            yield Channels(kind, subject, FREE)
            yield Channels(kind, subject, FREE, fitted=True)
        for make in (dropping, shrinking, adding_up):
            plans = make(subject, self.folder / make.__name__, clock)
            yield plans
            name, about = f"{plans.name}, with updp's fit", f"the same plans as {plans.name}"
            yield Plans(name, about, subject, UPDP, plans.plans, plans.survey)

    @cached_property
    def wanted(self) -> tuple[Tensor, Tensor]:
        """The baseline's logits on the test images (N, classes), and the labels (N,)."""
        return self._run(self.subject.model)

    def figures(self, trial: Trial) -> Result:
        """See `Versus`; also what is lost, its 95 % interval, and the KL divergence."""
        found = super().figures(trial)
        logits, labels = self._run(trial.trained(0, found["lr"]))
        reference = self.wanted[0]
        lost = (reference.argmax(1) == labels).double() - (logits.argmax(1) == labels).double()
        interval = 1.96 * 100 * lost.std().item() / len(lost) ** 0.5
        divergence = F.kl_div(
            logits.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True
        )
        return {
            **found,
            "lost": 100 * lost.mean().item(),
            "interval": interval,
            "divergence": divergence.item(),
        }

    @torch.no_grad()
    def _run(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        batches = self.subject.feed(self.subject.recipe()).test()
        pairs = [(model.eval()(images).double(), labels) for images, labels in batches]
        logits, labels = zip(*pairs, strict=True)
        return torch.cat(logits), torch.cat(labels)

    def unpruned(self) -> float:
        """The baseline as it is: nobody would train it on a thousand images."""
        logits, labels = self.wanted
        return 100 * (logits.argmax(1) == labels).double().mean().item()

    def write(self, rows: Sequence[Result], unpruned: float) -> None:
        """Write the results and the page of all networks."""
        measure, output = self.stopwatch.measure, self.options.output
        result = {
            "network": self.subject.network.name,
            "device": device_name(self.subject.device),
            "runtime": f"{measure.runtime}, batch {measure.batch_size}",
            "epochs": self.options.epochs,
            "baseline": {"top1": unpruned, "ms": self.baseline_ms},
            "methods": self.rivals,
            "left_out": self.left_out,
            "rows": rows,
        }
        output.write(f"imagenet-{self.subject.network.name}", result)
        lines = [INTRO]
        for one in output.read("imagenet-*"):
            lines += _section(one)
        output.write_page("imagenet", "\n".join(lines))


def _section(result: Result) -> list[str]:
    base = result["baseline"]
    rows = [
        (
            f"{row['point']:g}",
            row["method"],
            quartiles(row["speedup"]),
            f"{row['macs'] / 1e6:.0f} M",
            f"{row['top1']:.2f}",
            f"{row['lost']:.2f} ({row['lost'] - row['interval']:.2f} to "
            f"{row['lost'] + row['interval']:.2f})",
            f"{row['divergence']:.3f}",
        )
        for row in sorted(result["rows"], key=lambda row: (-row["point"], row["divergence"]))
    ]
    columns = ("share of the latency", "method", "speed-up", "MACs", "top-1", "lost", "KL")
    return [
        f"## {result['network']}; {result['device']}, {result['runtime']}",
        "",
        f"{result['epochs']:g} epochs of training. The baseline has {base['top1']:.2f} % and takes "
        f"{quartiles(base['ms'])} ms.",
        "",
        *(f"- *{method}*: {about}." for method, about in result["methods"].items()),
        *(f"- Left out: {what} ({why})." for what, why in result["left_out"].items()),
        "",
        *table(columns, rows, ("share of the latency", "MACs", "top-1", "KL")),
        "",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--network", choices=IMAGENET, nargs="+", default=tuple(IMAGENET))
    parser.add_argument("--epochs", type=float, default=0)
    parser.add_argument("--batch", type=int, default=16, help="images timed at once")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/imagenet")
    add_options(parser, (0.9, 0.8, 0.65, 0.5))
    compare(ImageNetMap, IMAGENET, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
