"""Prune a segmentation network: a class for each pixel, measured by mean IoU.

python examples/tasks/segmentation.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import updp

CLASSES, CHANNELS, SIZE = 3, 16, 16


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around both."""

    def __init__(self, c: int = CHANNELS) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Segmenter(nn.Module):
    """Half of the resolution, blocks, and back; it returns a dictionary, as torchvision's."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, 2, 1)
        self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
        self.head = nn.Conv2d(CHANNELS, CLASSES, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to logits (N, classes, H, W)."""
        y = self.head(self.blocks(self.stem(x)))
        return {"out": F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)}


def shapes(count: int, seed: int) -> TensorDataset:
    """Images of a bright square and a dark disc on noise, with masks (H, W): 0, 1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(3, SIZE - 3, (2, 2, count, 1, 1), generator=generator)
    line, column = torch.arange(SIZE)[:, None], torch.arange(SIZE)
    apart = [((line - a).abs(), (column - b).abs()) for a, b in places]
    square = torch.maximum(*apart[0]) <= 3
    disc = apart[1][0] ** 2 + apart[1][1] ** 2 <= 9
    masks = torch.where(disc, 2, square.long())
    noise = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return TensorDataset(
        noise + 1.5 * ((masks == 1).float() - (masks == 2).float())[:, None], masks
    )


def fit(model: nn.Module, data: TensorDataset, steps: int) -> None:
    """Train with cross-entropy."""
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    images, masks = data.tensors
    for step in range(steps):
        part = torch.arange(step * 32, step * 32 + 32) % len(images)
        loss = F.cross_entropy(model(images[part])["out"], masks[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(steps: int = 150, depth: int = 4, budget: str = "blocks=2") -> updp.Pruned:
    """Train, prune, and print mean IoU after each stage."""
    torch.manual_seed(0)
    model, data = Segmenter(depth), shapes(256, 0)
    fit(model, data, steps)
    recipe = updp.Recipe(budget=updp.Budget.parse(budget)).updated(
        *("search.evaluations=4", "search.refined=2", "subnet.epochs=1", "measure.batch_size=8")
    )
    pruned = updp.prune(model, data, recipe, test=shapes(64, 1), task="segmentation")
    for stage, value in pruned.result.by_stage.items():
        print(f"{stage}: {pruned.result.metric.name} {pruned.result.metric.text(value)}")
    return pruned


if __name__ == "__main__":
    main()
