"""Train the networks that the accuracy benchmarks prune, on the CIFAR-10 JPEGs.

    python -m benchmarks.accuracy.train_baseline --network convnext-mini   # one CPU thread, 8 min
    python -m benchmarks.accuracy.train_baseline --network resnet-mini --epochs 0.1 --output DIR

Killed at any moment, or stopped by --minutes, it goes on with the same command. The 3,000 images
that the benchmarks hold out (seed 0) are not trained on. Weights are written to
runs/baselines/NETWORK.safetensors, top-1 on all test images to results/baselines.json; with
--epochs, which is for a trial of the program, both are written to --output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy.baselines import BASELINES, MINI, NETWORKS, Network, source
from benchmarks.common.classifiers import top1
from benchmarks.common.clock import Clock, TimeUp
from benchmarks.common.data import image_size
from benchmarks.common.output import device_name, make_parser
from updp.blocks import Findings
from updp.blocks.nested import Samples
from updp.data import preprocess_for
from updp.data.feed import Feed
from updp.io.files import read_json, write_json, write_tensors
from updp.models import load_model
from updp.recipe import TrainingSettings
from updp.supernet import Supernet
from updp.tasks.losses import classification
from updp.training.loop import train
from updp.training.precision import MixedPrecision


def run(
    network: Network, training: TrainingSettings, device: torch.device, clock: Clock, out: Path
) -> Path:
    """Train one network, if that was not done before; the file of its test accuracy.

    Weights are written to `out`, checkpoints and accuracy to a folder in it.
    """
    folder = out / network.name
    done = folder / "result.json"
    if done.exists():
        return done
    model = load_model(network.model, seed=0).to(device).to(memory_format=torch.channels_last)
    data = source(network)
    preprocess = preprocess_for(model, image_size(data))
    feed = Feed(data, preprocess, network.recipe(data).data, seed=0, device=device)
    net = Supernet(model, Findings((), (), {}), {})  # nothing in it is switchable

    def step(
        images: Samples, targets: Any, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, float | Tensor]:
        assert isinstance(images, Tensor)
        logits = net(images.contiguous(memory_format=torch.channels_last))
        loss = classification(logits, targets, training.label_smoothing)
        precision.backward(loss)
        return {"loss": loss.detach()}

    train(net, step, feed, training, name="baseline", seed=0, folder=folder, progress=clock)
    accuracy = top1(net, feed.test())
    write_tensors(out / network.weights.name, model.state_dict())
    settings, where = training.model_dump(), device_name(device)
    write_json(done, {"top1": accuracy, "training": settings, "device": where})
    return done


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--network", choices=MINI, nargs="+", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many")
    parser.add_argument("--epochs", type=float, help="fewer than the network's own")
    options = parser.parse_args(arguments)
    clock = Clock(options.minutes)
    results = options.output.results / "baselines.json"
    try:
        for name in options.network:
            network, out = NETWORKS[name], BASELINES
            assert network.training is not None
            training = network.training
            if options.epochs is not None:
                training = training.model_copy(update={"epochs": options.epochs})
                out = options.output.results
            done = run(network, training, torch.device(options.device), clock, out)
            row = read_json(done)
            print(f"{name}: {row['top1']:.2f} %", flush=True)
            rows = read_json(results) if results.exists() else {}
            write_json(results, rows | {name: row})
    except TimeUp as stop:
        print(stop, flush=True)


if __name__ == "__main__":
    main()
