"""Prune a detector of torchvision, measured by mean average precision.

python examples/tasks/detection.py  (needs `pip install 'updp[detection]'`)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import updp

CHANNELS, SIZE = 16, 32


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around both."""

    def __init__(self, c: int = CHANNELS) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Backbone(nn.Sequential):
    """A quarter of the resolution, and blocks."""

    out_channels = CHANNELS

    def __init__(self, depth: int) -> None:
        super().__init__(nn.Conv2d(3, CHANNELS, 4, 4), *[Block() for _ in range(depth)])


def detector(depth: int = 4) -> RetinaNet:
    """A RetinaNet of one level, for squares of about 12 pixels."""
    anchors = AnchorGenerator(sizes=((12,),), aspect_ratios=((1.0,),))
    sizes = {"min_size": SIZE, "max_size": SIZE, "detections_per_img": 10}
    model = RetinaNet(Backbone(depth), num_classes=2, anchor_generator=anchors, **sizes)
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):  # RetinaNet's own start is for weeks of training
            nn.init.kaiming_normal_(module.weight)
    return model


class Squares(Dataset[Any]):
    """A bright square on noise; its box is (left, top, right, bottom), its class 1."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = 0.2 * torch.rand(count, 3, SIZE, SIZE, generator=generator)
        corners = torch.randint(0, SIZE - 12, (count, 2), generator=generator)
        self.boxes = torch.cat([corners, corners + 12], 1).float()
        for image, (left, top, right, bottom) in zip(self.images, self.boxes.int(), strict=True):
            image[:, top:bottom, left:right] += 0.7

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[index], {"boxes": self.boxes[index][None], "labels": torch.tensor([1])}


def main(steps: int = 150, depth: int = 4, budget: str = "blocks=2") -> updp.Pruned:
    """Train, prune, and print the precision after each stage."""
    torch.manual_seed(0)
    model, data = detector(depth), Squares(128, 0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        items = [data[(8 * step + n) % len(data)] for n in range(8)]
        losses = model([image for image, _ in items], [dict(boxes) for _, boxes in items])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    recipe = updp.Recipe(budget=updp.Budget.parse(budget)).updated(
        *("search.evaluations=4", "search.refined=2", "subnet.epochs=1", "measure.batch_size=8")
    )
    pruned = updp.prune(model, data, recipe, test=Squares(32, 1), task="detection")
    for stage, value in pruned.result.by_stage.items():
        print(f"{stage}: {pruned.result.metric.name} {pruned.result.metric.text(value)}")
    return pruned


if __name__ == "__main__":
    main()
