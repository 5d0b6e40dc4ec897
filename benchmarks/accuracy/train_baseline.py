"""Train the networks that the accuracy benchmarks prune, on the CIFAR-10 JPEGs.

    python benchmarks/train_baseline.py --network convnext-mini     # one CPU thread, 8 minutes
    python benchmarks/train_baseline.py --network convnext-tiny --device cuda

Killed at any moment, or stopped by --minutes, it goes on with the same command. The 3,000 images
that the benchmarks hold out (seed 0) are not trained on. Weights are written to
runs/baselines/NETWORK.safetensors, top-1 on all test images to docs/results/baselines.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from clock import Clock, TimeUp
from setting import BASELINES, NETWORKS, ROOT, Network, source
from torch import Tensor

from updp.blocks import Findings
from updp.data import preprocess_for
from updp.data.feed import Feed
from updp.io.files import read_json, write_json, write_tensors
from updp.models import load_model
from updp.supernet import Supernet
from updp.training.evaluate import top1
from updp.training.loop import train
from updp.training.losses import classification

RESULTS = ROOT / "docs/results/baselines.json"


def run(network: Network, device: torch.device, clock: Clock, folder: Path) -> float:
    """Train one network and return its test accuracy; at once where that was done before."""
    assert network.training is not None, f"{network.name} comes with its weights"
    done = folder / "result.json"
    if done.exists():
        return float(read_json(done)["top1"])
    model = load_model(network.model, seed=0).to(device).to(memory_format=torch.channels_last)
    data = source(network)
    preprocess = preprocess_for(model, data.image_size)
    feed = Feed(data, preprocess, network.recipe(data).data, seed=0, device=device)
    net = Supernet(model, Findings((), (), {}), {})  # nothing in it is switchable
    smoothing = network.training.label_smoothing

    def step(images: Tensor, targets: Tensor, number: int, total: int) -> dict[str, float]:
        logits = net(images.contiguous(memory_format=torch.channels_last))
        loss = classification(logits, targets, smoothing)
        loss.backward()
        return {"loss": loss.item()}

    train(net, step, feed, network.training, seed=0, folder=folder, progress=clock)
    accuracy = top1(net, feed.test())
    write_tensors(network.weights, model.state_dict())
    write_json(
        done, {"top1": accuracy, "training": network.training.model_dump(), **machine(device)}
    )
    return accuracy


def machine(device: torch.device) -> dict[str, str]:
    """Where it was measured."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    return {"device": f"{device.type}, {torch.get_num_threads()} threads"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    own = [name for name, network in NETWORKS.items() if network.training is not None]
    parser.add_argument("--network", choices=own, nargs="+", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many")
    options = parser.parse_args()
    clock = Clock(options.minutes)
    try:
        for name in options.network:
            folder = BASELINES / name
            accuracy = run(NETWORKS[name], torch.device(options.device), clock, folder)
            print(f"{name}: {accuracy:.2f} %", flush=True)
            rows = read_json(RESULTS) if RESULTS.exists() else {}
            write_json(RESULTS, rows | {name: read_json(folder / "result.json")})
    except TimeUp as stop:
        print(stop, flush=True)


if __name__ == "__main__":
    main()
