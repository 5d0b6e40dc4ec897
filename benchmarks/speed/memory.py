"""Memory over 2,000 steps of training, and of a final table over more and more test images.

The data are Parquet and tar shards of tiny JPEGs that stay on disk, read by the loop's own batches
in a process for each line; the model is tiny, so that what grows is what reading keeps. Resident
set in MiB: of training after every 200 steps, of the table its largest.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common.output import make_parser
from benchmarks.speed.opening import CLASSES, peak, write_parquet, write_shards, write_tar
from updp.data import images, open_source, preprocess_for
from updp.data.feed import Feed
from updp.recipe import DataSettings
from updp.tasks import CLASSIFICATION
from updp.training import evaluate as evaluation

SIZE = (3, 32, 32)
STEPS, EVERY, BATCH = 2000, 200, 64
TESTED = (2_000, 8_000, 32_000)  # test images
WARM = 2  # of the figures of training are not compared: row groups are kept up to a limit


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--rows", type=int, default=130_000, help="training images")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.train or options.table:
        measured = train(options.train) if options.train else evaluate(options.table)
        print(json.dumps(measured))
        return
    results = {}
    for form, write in (("parquet", write_parquet), ("tar", write_tar)):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for count in TESTED:
                for split, rows in (("train", 1000), ("validation", count)):
                    (root / str(count)).mkdir(exist_ok=True)
                    write_shards(root / str(count), split, form, rows, write)
            (root / "whole").mkdir()
            for split, rows in (("train", options.rows), ("validation", 1000)):
                write_shards(root / "whole", split, form, rows, write)
            steps = in_process("--train", root / "whole")
            results[form] = {
                "mib_by_step": dict(zip(range(EVERY, STEPS + 1, EVERY), steps, strict=True)),
                "mib_grown": round(max(steps[WARM:]) - steps[WARM - 1], 1),
                "peak_mib_by_test_images": {
                    count: in_process("--table", root / str(count)) for count in TESTED
                },
            }
            print(form, results[form])
    about = {"machine": f"{platform.machine()}, {platform.system()}"}
    settings = {"rows": options.rows, "batch": BATCH, "image": "x".join(map(str, SIZE))}
    options.output.write("memory", {**about, **settings, "formats": results})


def in_process(option: str, root: Path) -> list[float]:
    """What this command prints with a hidden option."""
    command = [sys.executable, "-m", "benchmarks.speed.memory", option, str(root)]
    measured: list[float] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    )
    return measured


def train(root: Path) -> list[float]:
    """Resident set after every so many steps, MiB."""
    model, feed = tiny(), make_feed(root)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = []
    for step, (inputs, labels) in enumerate(islice(feed.training(0), STEPS), 1):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % EVERY == 0:
            found.append(resident())
    return found


def evaluate(root: Path) -> float:
    """Largest resident set after the final table's pass over the test split, MiB."""
    feed = make_feed(root)
    evaluation.evaluate(CLASSIFICATION, {"baseline": tiny(), "merged": tiny()}, feed.test())
    return round(peak(), 1)


def make_feed(root: Path) -> Feed:
    images.MEMORY_LIMIT = 0  # so that small images stay on disk, too
    source = open_source(str(root), input_size=SIZE)
    settings = DataSettings(batch_size=BATCH, held_out=50, calibration=50)
    preprocess = preprocess_for(nn.Identity(), SIZE)
    return Feed(source, preprocess, settings, seed=0, device=torch.device("cpu"))


def tiny() -> nn.Module:
    torch.set_num_threads(1)
    features = [nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def resident() -> float:
    """Resident set, MiB."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


if __name__ == "__main__":
    main()
