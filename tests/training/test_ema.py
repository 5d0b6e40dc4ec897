import pytest
import torch
from torch import Tensor, nn

from updp.training.ema import WeightAverage


def net_weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in net.state_dict(keep_vars=True).items()}


def trajectory(net: nn.Module, steps: int) -> None:
    """Something like a training step, in place."""
    generator = torch.Generator().manual_seed(steps)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    net(torch.randn(4, 3, generator=generator))


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_follows_the_trajectory_of_the_weights(decay: float) -> None:
    """Against the sum over all steps, in float64: no recursion."""
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).train()
    average = WeightAverage(net_weights(net), decay)
    seen = [{name: t.double().clone() for name, t in net.state_dict().items()}]
    decays = []
    for step in range(30):
        trajectory(net, step)
        average.update(step)
        seen.append({name: t.double().clone() for name, t in net.state_dict().items()})
        decays.append(min(decay, (1 + step) / (10 + step)))
    for name, got in average.tensors.items():
        if name.endswith("num_batches_tracked"):
            assert got.item() == 30
            continue
        expected = torch.zeros_like(seen[0][name])
        for index, values in enumerate(seen):
            share = 1.0 if index == 0 else 1 - decays[index - 1]
            for later in decays[index:]:
                share *= later
            expected += share * values[name]
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_averaging_leaves_the_weights_alone_and_resumes_from_its_tensors() -> None:
    net = nn.Linear(3, 2)
    first = WeightAverage(net_weights(net), 0.9)
    for step in range(5):
        trajectory(net, step)
        before = net.weight.detach().clone()
        first.update(step)
        assert torch.equal(net.weight, before)
    second = WeightAverage(net_weights(net), 0.9)
    assert not torch.equal(second.tensors["weight"], first.tensors["weight"])
    second.load({name: t.clone() for name, t in first.tensors.items()})
    for step in range(5, 9):
        trajectory(net, step)
        first.update(step)
        second.update(step)
    assert all(torch.equal(first.tensors[n], t) for n, t in second.tensors.items())
