"""Small models that tests hand over, as modules and as a user's own file."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, device=device)
        self.norm = nn.BatchNorm2d(4, device=device)
        self.head = nn.Linear(4, 10, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.mean((1, 2))))
