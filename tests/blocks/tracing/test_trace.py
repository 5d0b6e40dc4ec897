from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.blocks.tracing.graphs import residual_regions
from tests.families import FAMILIES, C, Mlp, conv, images, network
from updp.blocks import find
from updp.blocks.modules import call_user_code
from updp.blocks.tracing.calls import Arguments, record_calls
from updp.blocks.tracing.check import check_graph
from updp.blocks.tracing.interpret import NotTraceable, run_graph
from updp.blocks.tracing.trace import restored, trace_alone, trains_otherwise


@pytest.mark.parametrize("family", FAMILIES)
def test_children_are_leaves_and_the_graph_computes_the_block(family: str) -> None:
    model = network(family)
    block = model.blocks[0]
    (call,) = record_calls(model, images(), ["blocks.0"])["blocks.0"]
    graph = trace_alone(block, call)
    children = dict(block.named_children())
    for node in graph.nodes:
        if node.op == "call_module":
            assert str(node.target).split(".")[0] in children
    assert torch.equal(run_graph(block, graph, call)["output"], block(call.args[0].clone()))
    order = [n.name for n in graph.nodes]
    for region in residual_regions(graph):
        for path in (region.branch, region.skip):
            assert list(path) == sorted(path, key=order.index)
        assert not {*region.branch} & {*region.skip}


class Either(nn.Module):
    """Its way in training is another; a mode that is passed on is none."""

    def __init__(self, inner: bool) -> None:
        super().__init__()
        self.inner, self.fc = inner, Mlp(C)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, self.training)
        return self.fc(x) if self.inner or not self.training else self.fc(x) * 2


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_is_traced_as_in_evaluation(training: bool) -> None:
    for inner in (True, False):
        module, call = Either(inner).train(training), Arguments((torch.ones(2, C),))
        graph = trace_alone(module, call)
        assert [n.target for n in graph.nodes][1:] == ["training", F.dropout, "fc", "output"]
        assert trains_otherwise(module, call, graph) == (not inner)
        assert module.training is module.fc.training is training


def test_children_keep_their_own_mode_and_are_not_run() -> None:
    class Child(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("a leaf is not run")

    module = nn.Sequential(Child().eval()).train()
    module[0].eval()
    trace_alone(module)
    assert module.training
    assert not module[0].training


def test_any_exception_of_a_forward_is_reported_as_not_traceable() -> None:
    class Raising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("first line\nsecond")

    with pytest.raises(NotTraceable) as caught:
        trace_alone(Raising())
    assert "\n" not in str(caught.value)


def test_recorded_values_survive_later_in_place_operations() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            return F.relu_(y) + x

    x = torch.randn(3)
    values = run_graph(InPlace(), trace_alone(InPlace()), Arguments((x,)))
    assert torch.equal(values["mul"], x * 2)
    assert torch.equal(values["relu_"], F.relu(x * 2))


class Taking(nn.Module):
    def forward(self, x: Tensor, y: Tensor, factor: float = 3.0) -> Tensor:
        return (x - y) * factor


def test_arguments_are_matched_as_python_does() -> None:
    graph = trace_alone(Taking())
    x, y = torch.tensor(5.0), torch.tensor(1.0)
    for args, kwargs, expected in [
        ((x, y), {}, 12.0),
        ((x,), {"y": y}, 12.0),
        ((), {"y": y, "x": x, "factor": 2.0}, 8.0),
    ]:
        assert run_graph(Taking(), graph, Arguments(args, kwargs))["output"] == expected


class Counting(nn.Module):
    """Reads the number of samples by `len`, and goes through tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2))
        self.register_buffer("gains", torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        y = sum(w * g * x**i for i, (w, g) in enumerate(zip(self.weights, self.gains, strict=True)))
        steps = [step.cumsum(-1) for step in y.transpose(0, 1)]
        assert len(steps) == len(x.shape) + 1 == len(self.gains) + 1
        return torch.stack(steps, 1).reshape(len(x), -1)


def test_lengths_and_loops_hold_for_any_number_of_samples() -> None:
    module, x = Counting(), torch.randn(5, 3)
    graph = trace_alone(module, Arguments((x[:4],)))
    assert torch.equal(run_graph(module, graph, Arguments((x,)))["output"], module(x))


def test_a_loop_over_the_samples_holds_for_one_number_of_them() -> None:
    class Each(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([sample.flip(0) for sample in x])

    module, few, more = Each().eval(), *(Arguments((torch.randn(n, 3),)) for n in (4, 5))
    graph = trace_alone(module, few)
    values = run_graph(module, graph, few)
    with pytest.raises(NotTraceable, match="holds for one number of images only"):
        check_graph(module, graph, more, (few, values), only=True)


def test_missing_arguments_and_failing_graphs_are_reported() -> None:
    graph = trace_alone(Taking())
    with pytest.raises(NotTraceable, match="missing a required argument: 'y'"):
        run_graph(Taking(), graph, Arguments((torch.zeros(2),)))
    with pytest.raises(NotTraceable, match=r"its graph does not run: .*size of tensor"):
        run_graph(Taking(), graph, Arguments((torch.zeros(2), torch.zeros(3))))


class Buffered(nn.Module):
    """One of its buffers has one value for several places, two are overwritten, one is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.5).expand(3, 1, 1))
        self.register_buffer("shift", torch.tensor([0.5, torch.nan]).expand(3, 2))
        self.register_buffer("last", torch.zeros(3, 1, 1))
        self.register_buffer("graph", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        self.last.copy_(x.mean((0, 2, 3))[:, None, None])
        self.shift[0] += 1
        return x - self.mean


def test_buffers_of_any_kind_are_put_back() -> None:
    module = Buffered()
    with restored(module):
        module(torch.ones(2, 3, 4, 4))
        assert module.last.all()
        assert module.shift[0, 0] == 1.5
    assert not module.last.any()
    assert module.shift.tolist()[2][0] == 0.5


class Emptied(nn.Module):
    """Numbers are assigned where masks of the first axes, or of all, are true, and by index."""

    def forward(self, x: Tensor) -> Tensor:
        y, z, last = x * 2, x.clone(), x + 1
        y[x[..., 0] > 0] = 0
        y[x > 1] = 0.5
        z[torch.arange(x.shape[1], device=x.device)[:2]] = 2
        last[x.sum() < 0] = 3
        return y + z + last


def test_numbers_are_assigned_by_masks_and_indices_of_any_shape() -> None:
    module, few, more = Emptied(), torch.randn(4, 3, 2), torch.randn(5, 3, 2)
    graph = trace_alone(module, Arguments((few,)))
    for x in (few, more, -more, more.double()):
        assert torch.equal(run_graph(module, graph, Arguments((x,)))["output"], module(x))


class Large(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return x


def test_a_lack_of_memory_is_no_fault_of_the_forward() -> None:
    module, few, more = nn.Sequential(Large()), *(Arguments((torch.ones(n, 3),)) for n in (4, 5))
    graph = trace_alone(module, few)
    for attempt in (
        lambda: trace_alone(module, more),
        lambda: run_graph(module, graph, more),
        lambda: call_user_code(module, *more.args),
    ):
        with pytest.raises(torch.OutOfMemoryError, match="of memory"):
            attempt()


class Scaled(nn.Module):
    """It reads a number from a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.mlp = Mlp(C)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale.item() * self.mlp(x)


def test_a_number_of_a_buffer_is_read_at_run_time() -> None:
    module, call = Scaled(), Arguments((torch.randn(2, C),))
    graph = trace_alone(module, call)
    module.scale.fill_(0.7)
    assert torch.equal(run_graph(module, graph, call)["output"], module(*call.args))


class OwnPlace(nn.Module):
    """It reads device and type of weights of its own; a type that it names is another thing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(C, C), conv(C, C)

    def forward(self, x: Tensor) -> Tensor:
        own = next(self.parameters())
        x = x.to(own.device).to(dtype=own.dtype)
        steps = torch.arange(x.shape[1], device=own.device, dtype=own.dtype)
        gate = torch.softmax(steps, 0, dtype=torch.float32).to(x)
        y = x + self.b(F.relu(self.a(x)).to(own.dtype)) * gate[:, None, None]
        return y * torch.ones(1, device=own.device)


def test_device_and_type_of_its_own_are_those_of_the_input() -> None:
    module, x = OwnPlace(), torch.randn(2, C, 9, 7)
    graph = trace_alone(module, Arguments((x,)))
    assert torch.equal(run_graph(module, graph, Arguments((x,)))["output"], module(x))
    constants: list[object] = []
    for node in graph.nodes:
        fx.node.map_aggregate((node.args, node.kwargs), constants.append)
    assert not [c for c in constants if isinstance(c, torch.device)]
    assert [c for c in constants if isinstance(c, torch.dtype)] == [torch.float32]
    module.double()
    found = run_graph(module, graph, Arguments((x.double(),)))["output"]
    assert found.dtype == torch.float64
    assert torch.equal(found, module(x.double()))
    module.to("meta")
    assert run_graph(module, graph, Arguments((x.to("meta"),)))["output"].is_meta


def test_reading_a_place_of_its_own_costs_no_site() -> None:
    class Block(OwnPlace):
        def forward(self, x: Tensor) -> Tensor:
            own = next(self.parameters())
            x = x.to(own.device).to(dtype=own.dtype)
            return x + self.b(F.relu(self.a(x.to(own.dtype))).to(own.device))

    sites = find(nn.Sequential(Block(), Block()).eval(), torch.randn(2, C, 9, 7)).sites
    assert [site.branch is not None for site in sites] == [True, True]
