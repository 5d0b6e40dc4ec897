"""Train a baseline of the demo and write it where the zoo has it.

    python examples/digits/train.py resnet
    python examples/digits/train.py vit

Settings were chosen on 297 of the 1,297 training images (`--validate`), for the ViT in runs of
150 epochs; the baselines were then trained on all of them. The 500 test images had no say. Takes
about 1 minute and about 5.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from updp import zoo
from updp.data import Images, hold_out, open_source, preprocess_for


@dataclass(frozen=True)
class Settings:
    """AdamW with warm-up and cosine decay; the weights' moving average is what is kept."""

    lr: float
    epochs: int
    weight_decay: float = 0.05
    batch_size: int = 64
    smoothing: float = 0.1


SETTINGS = {
    "resnet": Settings(lr=0.0025, epochs=40),
    "vit": Settings(lr=0.0015, epochs=300),
}


def main() -> None:
    """Train, print accuracies, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("model", choices=SETTINGS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true", help="hold 297 images out; save nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)  # quickest for models this small
    torch.manual_seed(options.seed)
    model = zoo.build(f"digits-{options.model}")
    source = open_source("digits", input_size=(1, 8, 8))
    pixels, labels = tensors(source.train, model)
    if options.validate:
        rest, held = hold_out(len(labels), labels.tolist(), 297, options.seed)
        trained = train(model, pixels[rest], labels[rest], SETTINGS[options.model])
        print(f"validation: {accuracy(trained, pixels[held], labels[held]):.2f} %")
        return
    trained = train(model, pixels, labels, SETTINGS[options.model])
    print(f"training: {accuracy(trained, pixels, labels):.2f} %")
    print(f"test: {accuracy(trained, *tensors(source.test, model)):.2f} %")
    path = zoo.weights_of(f"digits-{options.model}")
    save_model(trained, str(path))
    print(f"saved {path}")


def train(model: nn.Module, pixels: Tensor, labels: Tensor, settings: Settings) -> nn.Module:
    """The moving average of the weights over training."""
    steps = len(labels) // settings.batch_size
    total = settings.epochs * steps
    average = ModelEmaV3(model, decay=0.99)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=settings.weight_decay)
    model.train()
    for step in range(total):
        if step % steps == 0:
            order = torch.randperm(len(labels))
        batch = order[step % steps :: steps][: settings.batch_size]
        optimizer.param_groups[0]["lr"] = settings.lr * min(
            (step + 1) / (0.05 * total), (1 + math.cos(math.pi * step / total)) / 2
        )
        logits = model(distort(pixels[batch]))
        loss = F.cross_entropy(logits, labels[batch], label_smoothing=settings.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model, step)
    return average.module.eval()


def distort(images: Tensor) -> Tensor:
    """Turn, scale, shear and move each image (N, 1, H, W) a little, at random."""
    count = len(images)

    def draw(reach: float) -> Tensor:
        """(N,) numbers in [-reach, reach]."""
        return reach * (2 * torch.rand(count) - 1)

    angle, shear, move = draw(0.25), draw(0.2), 0.25  # radians, share, 1 of the 8 pixels
    width, height = 1 + draw(0.15), 1 + draw(0.15)
    rows = [
        torch.stack([width * angle.cos(), shear - angle.sin(), draw(move)], 1),
        torch.stack([angle.sin(), height * angle.cos(), draw(move)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # Outside lies paper, which is the darkest value.
    paper = images.min()
    return F.grid_sample(images - paper, grid, align_corners=False) + paper


def tensors(images: Images, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 1, 8, 8) as the model takes them, and their labels (N,)."""
    pixels = torch.stack([images[i][0] for i in range(len(images))])
    return preprocess_for(model, (1, 8, 8))(pixels), torch.tensor(images.targets)


@torch.inference_mode()
def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    return 100 * (model(pixels).argmax(1) == labels).float().mean().item()


class _AsWritten(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description."""


if __name__ == "__main__":
    main()
