"""What a model reads of its blocks: with nothing pruned it must still be the model."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import Basic, C, conv, images
from tests.road import prune_half, supernet
from tests.sampling import every_other
from updp.blocks import find
from updp.errors import UserError


class Reader(nn.Module):
    """A classifier that reads something of each of its blocks."""

    def __init__(self, kind: str = "nothing") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = conv(3, C), nn.Linear(C, 5)
        self.blocks = nn.ModuleList([Basic(conv(C, 6), conv(6, C)) for _ in range(4)])
        for block in self.blocks:
            block.gain = 0.5
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) * READ[self.kind](block)
        return self.head(x.mean((2, 3)))


READ: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda block: 1.0,
    "attribute": lambda block: block.gain,
    "class": lambda block: 0.5 if isinstance(block, Basic) else 2.0,
    "length": lambda block: 1 / len([*block.children()]),
    "child's attribute": lambda block: 1 / block.conv1.out_channels,
    "child": lambda block: 0.5 if hasattr(block, "bn2") else 2.0,
    "children": lambda block: sum(getattr(m, "out_channels", 0) for m in block.children()) / 10,
    "last child": lambda block: [*block.named_children()][-1][0] == "act2",
    "weight": lambda block: block.conv1.weight.mean() + 1,
    "modules": lambda block: len([*block.modules()]) / 7,
    "parameters": lambda block: sum(p.numel() for p in block.parameters()) / 400,
    "log": lambda block: block.log[-1] if isinstance(block, Logging) else 1.0,
    "hook": lambda block: block.last.mean(),
}


CONTAINER: dict[str, Callable[[nn.Module], object]] = {
    "length": lambda block: 12 / len(block),
    "index": lambda block: block[-1].out_channels,
    "channels": lambda block: sum(getattr(m, "out_channels", 0) for m in block),
    "convolutions": lambda block: sum(isinstance(m, nn.Conv2d) for m in block),
}
READ |= {f"container's {kind}": read for kind, read in CONTAINER.items()}
NOT_THERE = {"log": "log", "modules": "modules", "parameters": "parameters"}
ASKED_ELSEWHERE = {"nothing", "hook", *NOT_THERE, *(f"container's {kind}" for kind in CONTAINER)}


@pytest.mark.parametrize("kind", every_other(sorted(READ.keys() - ASKED_ELSEWHERE)))
def test_what_the_model_reads_of_a_pruned_block_is_there(kind: str) -> None:
    net = Reader(kind)
    merged = prune_half(net, images())
    assert {type(block) for block in merged.blocks} == {Basic}
    assert len(find(copy.deepcopy(net).eval(), images()).sites) == 4
    assert ("blocks.0.conv1.weight" in dict(merged.named_parameters())) == (kind == "weight")
    counted = kind in ("length", "children", "last child")
    assert (len([*merged.blocks[0].children()]) == 6) == counted
    prune_half(merged, images())
    assert torch.equal(copy.deepcopy(merged)(images()), merged(images()))


def with_hooks(kind: str) -> nn.Module:
    net = Reader("hook" if kind == "keeps" else "nothing")
    for block in net.blocks:
        if kind == "scales":
            block.register_forward_hook(lambda m, x, y: y * 0.5)
        elif kind == "clamps":
            block.register_forward_pre_hook(lambda m, x: (x[0].clamp(-0.1, 0.1),))
        elif kind == "keeps":
            block.register_forward_hook(keep_last)
    return net


def keep_last(module: nn.Module, x: tuple[Tensor], y: Tensor) -> None:
    module.last = y.detach()


@pytest.mark.parametrize("kind", ["scales", "clamps", "keeps"])
def test_hooks_of_a_pruned_block_still_run(kind: str) -> None:
    net = with_hooks(kind)
    if kind == "keeps":
        prune_half(net, images())
        return
    findings, switched = supernet(net, images())
    assert len(findings.sites) == 4
    assert torch.equal(switched(images()), net.eval()(images()))
    switched.choose({n: s.labels[0] for n, s in switched.switches.items()})
    x = images()
    exact = switched.merged(torch.float64)(x.double())
    assert torch.allclose(exact, switched.double()(x.double()), rtol=1e-11)


class Hooked(Reader):
    """Reads what a hook within its second block's branch noted, perhaps of an earlier forward."""

    def __init__(self, blocks: list[nn.Module], inside: str) -> None:
        super().__init__()
        self.blocks, self.noted = nn.ModuleList(blocks), {}
        self.blocks[1].get_submodule(inside).register_forward_hook(self.note)

    def note(self, module: nn.Module, x: object, y: Tensor) -> None:
        self.noted["mean"] = y.mean()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.noted["mean"]


def test_what_a_hook_within_a_branch_notes_is_missed_before_it_is_pruned() -> None:
    net = Hooked([Basic(conv(C, 6), conv(6, C)) for _ in range(3)], "conv2")
    findings = find(net.eval(), images())
    assert [site.name for site in findings.sites] == ["blocks.0", "blocks.2"]
    (refused,) = findings.unusable
    assert refused.reason.startswith("the model needs more of it than its output: without that")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Basic(conv(C, 6), conv(6, C)), Basic(conv(C, 6), conv(6, C))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a.conv2(self.a.act1(self.a.conv1(x)))
        return x + self.b.conv2(self.b.act1(self.b.conv1(x)))


def test_other_branches_of_a_block_of_which_one_is_read_are_pruned() -> None:
    net = Hooked([Twice(), Twice()], "b.conv1")
    findings = find(net.eval(), images())
    names = [f"blocks.{i}:{part}" for i in range(2) for part in ("a.conv1", "b.conv1")]
    assert [site.name for site in findings.sites] == names[:3]
    assert [u.name for u in findings.unusable] == names[3:]


class Logging(Basic):
    def forward(self, x: Tensor) -> Tensor:
        self.log = [*getattr(self, "log", [])[-1:], x.mean()]
        return super().forward(x)


@pytest.mark.parametrize("kind", sorted(NOT_THERE))
def test_a_block_of_which_more_is_read_is_refused(kind: str) -> None:
    net = Reader(kind)
    net.blocks[1] = Logging(conv(C, 6), conv(6, C))
    findings = find(net.eval(), images())
    refused = [u.name for u in findings.unusable]
    assert refused == ([f"blocks.{i}" for i in range(4)] if kind != "log" else ["blocks.1"])
    (reason,) = [u.reason for u in findings.unusable if u.kind == "Logging"]
    says = f"the model needs more of it than its output (it reads {NOT_THERE[kind]}): without that"
    assert reason.startswith(f"{says}, its output differs")
    assert "log" not in vars(net.blocks[1])
    if kind == "log":
        prune_half(net, images(), first=1)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Layers(nn.Module):
    """A block that acts as a list of its layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> nn.Module:
        return self.layers[index]

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y


@pytest.mark.parametrize("container", [nn.Sequential, Residual, Layers])
@pytest.mark.parametrize("kind", CONTAINER)
def test_a_container_that_is_pruned_has_its_length_and_layers(
    kind: str, container: Callable[..., nn.Module]
) -> None:
    net = Reader(f"container's {kind}")
    for i in range(4):
        net.blocks[i] = container(conv(C, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, C))
    merged = prune_half(net, images())
    assert type(merged.blocks[0]) is container
    assert len(merged.blocks[0]) == 4
    weights = sum(p.shape == (C, 6, 3, 3) for p in merged.blocks[0].parameters())
    assert weights == (kind == "convolutions")


RUN: dict[str, Callable[[nn.Sequential, Tensor], Tensor]] = {
    "iterated": lambda block, x: functools.reduce(lambda y, layer: layer(y), block, x) / len(block),
    "indexed": lambda block, x: block[-1](block[2](block[1](block[0](x)))),
    "sliced": lambda block, x: block[2:](block[:2](x)),
    "called beside": lambda block, x: block(x) + block[0](x)[:, :C],
}


class Runner(nn.Module):
    """A classifier that runs the layers of its blocks itself."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = (conv(C, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, C))
        self.blocks = nn.ModuleList([nn.Sequential(*map(copy.deepcopy, layers)) for _ in range(3)])
        self.kind, self.stem, self.head = kind, conv(3, C), nn.Linear(C, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + RUN[self.kind](block, x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("kind", RUN)
def test_layers_that_the_model_runs_itself_are_pruned(kind: str) -> None:
    findings = find(Runner(kind).eval(), images())
    assert len(findings.sites) == 3, findings.unusable
    prune_half(Runner(kind), images())


class MonteCarlo(Basic):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=True)


class Dropping(nn.Sequential):
    """Runs each of its layers by chance."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            if torch.rand(()) < 0.5:
                x = layer(x)
        return x


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (MonteCarlo(conv(C, 6), conv(6, C)), r"module blocks\.1 \(MonteCarlo\) is random"),
        (Dropping(*(conv(C, C, bias=True) for _ in range(9))), r"blocks\.1 \(Dropping\)"),
        (nn.Sequential(Counting()), r"blocks\.1\.0 \(Counting\) is random, or remembers"),
    ],
)
def test_a_model_that_is_random_in_evaluation_is_named_with_its_module(
    module: nn.Module, says: str
) -> None:
    net = Reader().eval()
    for parameter in module.parameters():  # else as of this run, and one in sixty hides it
        nn.init.normal_(parameter)
    net.blocks[1] = module.eval()
    torch.manual_seed(0)
    with pytest.raises(UserError, match=says) as caught:
        find(net, images())
    assert len(str(caught.value).splitlines()) == 1


class Cached(nn.Module):
    """Keeps tensors in a dictionary, by the name of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(C, 6), nn.Linear(6, C), nn.Parameter(torch.ones(6))
        self.cache: dict[str, Tensor] = {}

    def bias(self, device: torch.device) -> Tensor:
        if self.training:
            return self.shift * 2
        if str(device) not in self.cache:
            self.cache[str(device)] = self.shift * 2
        return self.cache[str(device)]

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) + self.bias(x.device)).softmax(-1))


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Cached()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_what_a_module_keeps_in_a_dictionary_is_restored() -> None:
    net = Reader().eval()
    net.blocks[1] = Around().eval()
    find(net, images())
    assert net.blocks[1].a.cache == {}
    copy.deepcopy(net)


def test_the_returned_model_is_copied_compiled_exported_saved_and_pruned_again() -> None:
    x = images()
    merged = prune_half(Reader("attribute"), x)
    expected = merged(x)
    for made in (copy.deepcopy(merged), reloaded(merged), reloaded(reloaded(merged))):
        assert torch.equal(made(x), expected)
        assert made.blocks[0].forward.block is made.blocks[0]
        with torch.no_grad():
            made.blocks[0].branch_merged.weight.zero_()
        assert not torch.equal(made(x), expected)
    assert torch.equal(merged(x), expected)
    compiled = torch.compile(merged, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), expected, atol=1e-6)
    program = torch.export.export(merged, (x,))
    assert torch.allclose(program.module()(x), expected, atol=1e-6)
    findings, _ = supernet(merged, x)
    assert [s.name for s in findings.sites] == [":blocks.0", "blocks.1", "blocks.3"]
    twice = prune_half(merged, x)
    assert twice.blocks[0].gain == 0.5


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_returned_model_is_traced_by_torchscript_and_not_scripted() -> None:
    merged = prune_half(Reader(), images())
    traced = torch.jit.trace(merged, images())
    more = torch.cat([images(), images() + 1])
    assert torch.allclose(traced(more), merged(more), atol=1e-6)
    with pytest.raises(AttributeError, match=r"of a pruned Basic: take torch\.jit\.trace"):
        torch.jit.script(merged.blocks[0])


def reloaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Training(nn.Module):
    """Its BatchNorm takes the statistics of the batch in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = conv(C, 6), nn.BatchNorm2d(6), conv(6, C)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.norm(self.a(x)).relu())


def test_batch_statistics_in_evaluation_are_named_and_not_folded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Reader()
    net.blocks[1] = Training()
    statistics = net.blocks[1].norm.running_mean.clone()
    findings = find(net.eval(), images())
    assert torch.equal(net.blocks[1].norm.running_mean, statistics)
    assert "blocks.1.norm (BatchNorm2d), or what calls it, takes statistics" in caplog.text
    (site,) = [s for s in findings.sites if s.name == "blocks.1"]
    assert site.why == "`norm` is a BatchNorm that trains in evaluation mode, too"
    caplog.clear()
    find(Reader().eval(), images())
    assert not caplog.text


class Contrasted(Reader):
    """Compares each image with each."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vectors = super().forward(x).flatten(1)
        logits = vectors @ vectors.T
        return logits, logits.flatten()[:, None]


class Counted(Reader):
    """Its output has a column for each image, and two more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)[:, : len(x) + 2]


def test_outputs_for_pairs_of_images_are_no_statistics(caplog: pytest.LogCaptureFixture) -> None:
    find(Contrasted().eval(), images())
    assert not caplog.text


def test_an_output_whose_shape_depends_on_the_batch_is_said_to_be_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    find(Counted().eval(), images())
    assert "the shape of what the model says of an image depends on the other images" in caplog.text
    assert "(2, 4) for 2 images, the first 2 of 3 have (2, 5)" in caplog.text
    assert "statistics" not in caplog.text
