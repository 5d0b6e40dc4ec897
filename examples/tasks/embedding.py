"""Prune an embedding network, with a task of one's own: is the nearest image of the same class?

python examples/tasks/embedding.py
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import updp

CLASSES, CHANNELS, SIZE = 5, 16, 12


class Recall(updp.Task):
    """Unit vectors, compared by their squared distance; the metric is recall at 1."""

    name = "recall"
    metric = updp.Metric(name="recall at 1")
    agreement = metric

    def distance(self, outputs: Tensor, baseline: Tensor) -> Tensor:
        """1 minus the cosine of the angle, (N,)."""
        return 1 - F.cosine_similarity(outputs.double(), baseline.double())

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Each image finds those of its class among the others of the batch."""
        near = 10 * outputs @ outputs.T - 1e4 * torch.eye(len(outputs), device=outputs.device)
        alike = (labels[:, None] == labels).float().fill_diagonal_(0)
        alike = alike / alike.sum(1, keepdim=True).clamp(min=1)
        return -(alike * near.log_softmax(1)).sum(1).mean()

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Images whose nearest neighbour in the batch is of their class, and images."""
        near = outputs @ outputs.T - 10 * torch.eye(len(outputs), device=outputs.device)
        right = (labels[near.argmax(1)] == labels).sum()
        return torch.stack([right, right.new_tensor(len(labels))])

    def value(self, figures: Sequence[Tensor]) -> float:
        """In percent."""
        right, images = torch.stack([*figures]).sum(0).tolist()
        return 100 * right / max(images, 1)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around both."""

    def __init__(self, c: int = CHANNELS) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Embedder(nn.Module):
    """Images to unit vectors."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, 2, 1)
        self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
        self.head = nn.Linear(CHANNELS, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 8)."""
        return F.normalize(self.head(self.blocks(self.stem(x)).mean((2, 3))), dim=1)


def stripes(count: int, seed: int) -> TensorDataset:
    """Noisy stripes, of another direction in each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    angle = labels * torch.pi / CLASSES
    line, column = torch.arange(SIZE)[:, None], torch.arange(SIZE)
    along = angle.cos()[:, None, None] * line + angle.sin()[:, None, None] * column
    phase = 6 * torch.rand(count, 1, 1, generator=generator)
    noise = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return TensorDataset(noise + 1.5 * torch.sin(along + phase)[:, None], labels)


def main(steps: int = 150, depth: int = 4, budget: str = "blocks=2") -> updp.Pruned:
    """Train, prune, and print the recall after each stage."""
    torch.manual_seed(0)
    task, model, data = Recall(), Embedder(depth), stripes(256, 0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    images, labels = data.tensors
    for step in range(steps):
        part = torch.arange(step * 32, step * 32 + 32) % len(images)
        optimizer.zero_grad()
        task.loss(model(images[part]), labels[part]).backward()
        optimizer.step()
    recipe = updp.Recipe(budget=updp.Budget.parse(budget)).updated(
        *("search.evaluations=4", "search.refined=2", "subnet.epochs=1", "measure.batch_size=8")
    )
    pruned = updp.prune(model, data, recipe, test=stripes(64, 1), task=task)
    for stage, value in pruned.result.by_stage.items():
        print(f"{stage}: {pruned.result.metric.name} {pruned.result.metric.text(value)}")
    return pruned


if __name__ == "__main__":
    main()
