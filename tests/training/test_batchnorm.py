import pytest
import torch
from torch import nn

from tests import tiny
from updp.io import processes
from updp.training.batchnorm import preserved, recalibrate, synchronised


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5, momentum=None),
    )
    for norm in (net[1], net[5]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked.fill_(17)
    return net


def test_statistics_are_those_of_what_each_norm_sees() -> None:
    net = make_net().train()
    batches = [torch.randn(6, 2, 6, 6) * 2 + 1, torch.randn(4, 2, 6, 6) - 3]
    modes = [m.training for m in net.modules()]
    recalibrate(net, batches)
    assert [m.training for m in net.modules()] == modes
    assert [net[i].momentum for i in (1, 5, 9)] == [0.3, 0.1, None]
    assert [int(net[i].num_batches_tracked) for i in (1, 5, 9)] == [2, 2, 2]

    # Independently, in float64: each batch is normalised by its own statistics on the way.
    exact = make_net().double()
    means: dict[int, list[torch.Tensor]] = {1: [], 5: [], 9: []}
    variances: dict[int, list[torch.Tensor]] = {1: [], 5: [], 9: []}
    with torch.no_grad():
        for x in batches:
            x = x.double()
            for i, layer in enumerate(exact):
                if isinstance(layer, nn.Dropout):
                    continue
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    dims = tuple(d for d in range(x.ndim) if d != 1)
                    shape = (1, -1, *[1] * (x.ndim - 2))
                    mean, biased = x.mean(dims), x.var(dims, unbiased=False)
                    if i in means:
                        means[i].append(mean)
                        variances[i].append(x.var(dims, unbiased=True))
                    weight, bias = layer.weight.view(shape), layer.bias.view(shape)
                    x = (x - mean.view(shape)) / (biased.view(shape) + layer.eps).sqrt()
                    x = x * weight + bias
                else:
                    x = layer(x)
    for i in means:
        mean, var = torch.stack(means[i]).mean(0), torch.stack(variances[i]).mean(0)
        assert torch.allclose(net[i].running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        assert torch.allclose(net[i].running_var.double(), var, rtol=1e-4, atol=1e-5)


def test_recalibration_forgets_the_statistics_before() -> None:
    batches = [torch.randn(6, 2, 6, 6)]
    one, two = make_net(), make_net()
    two[1].running_mean.fill_(100)
    recalibrate(one, batches)
    recalibrate(two, batches)
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fails", [False, True])
def test_statistics_momenta_and_modes_are_restored_even_after_an_error(fails: bool) -> None:
    net = make_net().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    objects = [id(buffer) for buffer in net.buffers()]
    size = 5 if fails else 6  # too small for the linear layer
    try:
        with preserved(net):
            recalibrate(net, [torch.randn(6, 2, size, size)])
            assert not fails
    except RuntimeError:
        assert fails
    assert [id(buffer) for buffer in net.buffers()] == objects
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [net[i].momentum for i in (1, 5, 9)] == [0.3, 0.1, None]
    assert not any(m.training for m in net.modules())


def test_a_net_without_norms_is_left_alone() -> None:
    net = nn.Linear(3, 3)
    with preserved(net):
        recalibrate(net, [torch.randn(2, 3)])
    assert net.training


def whole_and_half(seed: int) -> None:
    """One BatchNorm sees all images here, another one this process' half of them."""
    processes.join(cuda=False)
    generator = torch.Generator().manual_seed(seed)
    shape = [4, 3, *torch.randint(1, 5, (seed % 3,), generator=generator).tolist()]
    images = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 100
    slopes = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[seed % 3]
    norm, whole = (kind(3, momentum=0.3).double() for _ in range(2))
    mine = slice(2, None) if processes.rank() else slice(2)
    half, images = images[mine].clone().requires_grad_(), images.requires_grad_()
    with synchronised():
        output = norm(half)
        (output * slopes[mine]).sum().backward()
    expected = whole(images)
    (expected * slopes).sum().backward()
    torch.testing.assert_close(output, expected[mine], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(half.grad, images.grad[mine], rtol=1e-9, atol=1e-9)
    for own, other in zip(norm.parameters(), whole.parameters(), strict=True):
        processes.all_reduce(own.grad)
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-9)
    for own, other in zip(norm.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_processes_normalise_by_what_all_of_them_see(seed: int) -> None:
    tiny.together(2, whole_and_half, seed)
