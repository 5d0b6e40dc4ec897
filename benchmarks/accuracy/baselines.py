"""What the accuracy benchmarks prune: networks with their weights, data and ways of training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from torch import nn

from updp.data import Source, open_source
from updp.data.images import InMemory
from updp.models import load_model
from updp.recipe import Recipe, TrainingSettings

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
HERE = Path(__file__).parent
BASELINES = ROOT / "runs" / "baselines"

SGD = ("subnet.optimizer=sgd", "subnet.weight_decay=0.0005")
ADAMW = ("subnet.optimizer=adamw", "subnet.weight_decay=0.05")


@dataclass(frozen=True)
class Network:
    """One network: `blocks` are sizes of plan, the usual one first, `rates` learning rates to try.

    `training` is how its baseline is trained; None where weights were downloaded. `settings`
    change the recipe: how its subnets are trained.
    """

    name: str
    model: str
    data: str
    weights: Path
    blocks: tuple[int, ...]
    rates: tuple[float, ...]
    settings: tuple[str, ...]
    training: TrainingSettings | None = None

    def load(self) -> nn.Module:
        """The trained baseline."""
        assert self.weights.exists(), f"{self.weights}: run benchmarks/train_baseline.py"
        return load_model(self.model, weights=self.weights).eval()

    def recipe(self, data: Source, *settings: str) -> Recipe:
        """The default recipe, with the network's own settings and these.

        A fifth of the training images, up to 2,000, is held out of all training: learning rates are
        chosen by them, and plans, as they are, for no network that was trained here has seen them.
        """
        held_out = f"data.held_out={min(2000, len(data.train) // 5)}"
        split = (held_out, "subnet.all_images=false", "search.blended=false")
        return Recipe().updated(*split, *self.settings, *settings)


@cache
def _whole(data: str) -> Source:
    return open_source(str(DATA / data), input_size=(3, 32, 32))


def source(network: Network, images: int | None = None) -> Source:
    """The network's data, with the first `images` training images at most (files are shuffled)."""
    assert DATA.exists(), f"{DATA} is not there"
    whole = _whole(network.data)
    train = whole.train
    if images is None or images >= len(train):
        return whole
    assert isinstance(train, InMemory)
    few = InMemory(train.pixels[:images], train.targets[:images])
    return replace(whole, train=few, fingerprint=f"{whole.fingerprint}-{images}")


def _trained(
    factory: str,
    blocks: tuple[int, ...],
    training: TrainingSettings,
    rates: tuple[float, ...],
    *settings: str,
) -> Network:
    """A network of networks.py that train_baseline.py trains."""
    name = factory.replace("_", "-")
    return Network(
        name,
        f"{HERE / 'networks.py'}:{factory}",
        "cifar10",
        BASELINES / f"{name}.safetensors",
        blocks,
        rates,
        ("data.batch_size=128", *settings),
        training,
    )


def _training(lr: float, epochs: int, mixed: float = 0.0) -> TrainingSettings:
    return TrainingSettings(
        optimizer="adamw",
        lr=lr,
        epochs=epochs,
        weight_decay=0.05,
        warmup=0.2,
        label_smoothing=0.1,
        mixup=0.8 * mixed,
        cutmix=mixed,
    )


_LOW, _HIGH = (0.0001, 0.0003, 0.001, 0.003), (0.001, 0.005, 0.02, 0.05)
NETWORKS = {
    network.name: network
    for network in (
        Network(
            "resnet56",
            f"{ROOT / 'examples/cifar_resnet.py'}:resnet56",
            "cifar10_lossless",
            DATA / "weights/cifar10_resnet56.safetensors",
            (9, 15),
            _HIGH,
            ("data.held_out=500", "data.calibration=500", "data.batch_size=64", *SGD),
        ),
        _trained("resnet_mini", (7, 4), _training(4e-3, 10), _HIGH, *SGD),
        _trained("mobilenetv2_mini", (6, 4), _training(4e-3, 8), _HIGH, *SGD),
        _trained("convnext_mini", (6, 4), _training(3e-3, 13), _LOW, *ADAMW),
        _trained("deit_mini", (7, 5), _training(2e-3, 8), _LOW, *ADAMW),
        _trained("resnet34", (6, 10), _training(3e-3, 40), _HIGH, *SGD),
        _trained("mobilenetv2", (6, 10), _training(3e-3, 60), _HIGH, *SGD),
        _trained("convnext_tiny", (6, 12), _training(2e-3, 60, 1.0), _LOW, *ADAMW),
        _trained("deit_tiny", (6, 9), _training(1e-3, 100, 1.0), _LOW, *ADAMW),
    )
}
