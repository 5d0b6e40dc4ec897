"""Networks that the accuracy benchmarks prune: weights, data and ways of training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from torch import nn

from benchmarks.common.data import DATA, ROOT, check_data, cifar_resnet
from updp.data import Source, match_classes, open_source, resize_for
from updp.data.images import InMemory
from updp.models import load_model
from updp.recipe import Recipe, TrainingSettings

BASELINES = ROOT / "runs" / "baselines"

SGD = ("subnet.optimizer=sgd", "subnet.weight_decay=0.0005")
_FILE = Path(__file__).with_name("networks.py")
ADAMW = ("subnet.optimizer=adamw", "subnet.weight_decay=0.05")


@dataclass(frozen=True)
class Network:
    """A trained network and how its subnets are trained.

    `blocks` are numbers of blocks to prune, the usual one first; `rates` learning rates to try;
    `settings` change the recipe. `training` is how the baseline itself is trained; None where its
    weights were downloaded. `test` are images for the final tables, where `data` has no split.
    """

    name: str
    model: str
    data: str
    weights: Path
    blocks: tuple[int, ...]
    rates: tuple[float, ...]
    settings: tuple[str, ...]
    training: TrainingSettings | None = None
    test: str = ""

    def load(self) -> nn.Module:
        """The trained baseline. Raises SystemExit where it was not trained yet."""
        if not self.weights.exists():
            raise SystemExit(
                f"{self.weights} is missing: run `python -m benchmarks.accuracy.train_baseline "
                f"--network {self.name}`"
            )
        return load_model(self.model, weights=self.weights).eval()

    def recipe(self, data: Source, *settings: str) -> Recipe:
        """The default recipe with the network's own settings and these.

        A fifth of the training images, up to 2,000, is held out of all training: learning rates are
        chosen by them, and plans, as they are, for no network that was trained here has seen them.
        """
        held_out = f"data.held_out={min(2000, len(data.train) // 5)}"
        split = (held_out, "subnet.all_images=false", "search.blended=false")
        return Recipe().updated(*split, *self.settings, *settings)


@cache
def _whole(data: str) -> Source:
    return open_source(str(DATA / data), input_size=(3, 32, 32))


@cache
def _pictures(network: Network) -> Source:
    """Image files, resized and cropped as the network's own configuration says."""
    resize = resize_for(load_model(network.model))
    data, test = DATA / network.data, DATA / network.test
    source = open_source(str(data), input_size=resize, test=str(test))
    return match_classes(source, 1000, model=network.model, data=network.data)


def source(network: Network, images: int | None = None) -> Source:
    """The network's data, with the first `images` training images at most (files are shuffled)."""
    check_data()
    whole = _pictures(network) if network.test else _whole(network.data)
    train = whole.train
    if images is None or images >= len(train):
        return whole
    assert isinstance(train, InMemory)
    few = InMemory(train.pixels[:images], train.targets[:images])
    return replace(whole, train=few, fingerprint=f"{whole.fingerprint}-{images}")


def _trained_here(
    factory: str,
    blocks: tuple[int, ...],
    lr: float,
    epochs: int,
    rates: tuple[float, ...],
    settings: tuple[str, ...],
) -> Network:
    """A network of networks.py, which `train_baseline` trains."""
    name = factory.replace("_", "-")
    training = TrainingSettings(
        optimizer="adamw", lr=lr, epochs=epochs, weight_decay=0.05, warmup=0.2, label_smoothing=0.1
    )
    return Network(
        name,
        f"{_FILE}:{factory}",
        "cifar10",
        BASELINES / f"{name}.safetensors",
        blocks,
        rates,
        ("data.batch_size=128", *settings),
        training,
    )


def _on_imagenet(name: str, model: str, weights: str) -> Network:
    """A pretrained network, pruned from a thousand images by `--recipe repair`."""
    settings = Recipe.load(Path("repair")).subnet
    wanted = (
        "epochs",
        "optimizer",
        "weight_decay",
        "distill",
        "temperature",
        "blended",
        "features",
        "checks",
    )
    return Network(
        name,
        model,
        "imagenet_sample",
        DATA / f"weights/imagenet_{weights}.safetensors",
        (6, 3),
        (settings.lr,),
        (
            *("data.held_out=200", "search.blended=true", "subnet.all_images=true"),
            *(f"subnet.{field}={getattr(settings, field)}" for field in wanted),
            *("search.evaluations=40", "search.refined=9"),
        ),
        test="imagenet_val",
    )


_LOW, _HIGH = (0.0001, 0.0003, 0.001, 0.003), (0.001, 0.005, 0.02, 0.05)
_RESNET56, _RESNET56_WEIGHTS = cifar_resnet("resnet56")
NETWORKS = {
    network.name: network
    for network in (
        Network(
            "resnet56",
            _RESNET56,
            "cifar10_lossless",
            _RESNET56_WEIGHTS,
            (9, 15),
            _HIGH,
            ("data.held_out=500", "data.calibration=500", "data.batch_size=64", *SGD),
        ),
        _trained_here("resnet_mini", (7, 4), 4e-3, 10, _HIGH, SGD),
        _trained_here("mobilenetv2_mini", (6, 4), 4e-3, 8, _HIGH, SGD),
        _trained_here("convnext_mini", (6, 4), 3e-3, 13, _LOW, ADAMW),
        _trained_here("deit_mini", (7, 5), 2e-3, 8, _LOW, ADAMW),
        _trained_here("eva_mini", (7, 5), 2e-3, 8, _LOW, ADAMW),
    )
}
IMAGENET = {
    network.name: network
    for network in (
        _on_imagenet("deit-tiny", "timm/deit_tiny_patch16_224", "deit_tiny_patch16_224"),
        _on_imagenet("mobilenetv2", f"{_FILE}:mobilenetv2_same", "mobilenetv2_100_same"),
        _on_imagenet("efficientnet-lite0", "timm/tf_efficientnet_lite0", "tf_efficientnet_lite0"),
    )
}
MINI = tuple(name for name in NETWORKS if name.endswith("mini"))
