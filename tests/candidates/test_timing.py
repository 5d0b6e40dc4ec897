"""What was timed once on a device is not timed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.candidates.clock import SetSpeedups
from tests.families import C, Net, conv, images, network
from updp.blocks import find
from updp.blocks.nested import ModelInputs
from updp.candidates import Offer, make_offers
from updp.errors import UserError
from updp.io.files import read_json, write_json
from updp.measure import runner
from updp.measure.cache import cache_folder
from updp.recipe import MeasureSettings, Recipe

DEPTH = Recipe().updated("candidates.widths=[]")
CPU = torch.device("cpu")
FRAMES = 4


@pytest.fixture
def asked(set_speedups: SetSpeedups) -> list[int]:
    """How many candidates each comparison was asked for."""
    return set_speedups(dict.fromkeys(range(9), 2.0))


def offers(model: nn.Module, *settings: str) -> dict[str, tuple[Offer, ...]]:
    found = find(model, images())
    return make_offers(model, found, DEPTH.updated(*settings), CPU)[0]


def test_sites_of_one_structure_are_timed_once(asked: list[int]) -> None:
    first, second = offers(network("basic")).values()
    assert asked == [4, 4]  # a few rounds show which are slower; then all that may be faster
    assert [o.candidate for o in first] == [o.candidate for o in second]


def test_on_the_next_run_nothing_is_timed_or_merged(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = offers(network("basic"))
    asked.clear()
    monkeypatch.setattr("updp.candidates.timing.TracedSite.isolate", None)
    assert offers(network("basic", seed=7)) == before  # whatever the weights
    assert asked == []
    assert len(list(cache_folder().glob("*.json"))) == 1


def test_only_new_candidates_are_timed(asked: list[int]) -> None:
    offers(network("basic"), "candidates.drop=never")
    assert asked == [3, 3]
    asked.clear()
    found = offers(network("basic"))
    assert asked == [1, 1]
    assert [len(each) for each in found.values()] == [4, 4]


@pytest.mark.parametrize(
    "setting",
    [
        "measure.batch_size=2",
        "measure.rounds=13",
        "measure.precision=bfloat16",
        "measure.layout=channels_last",
        "measure.cache=false",
    ],
)
def test_another_way_to_measure_is_timed_again(asked: list[int], setting: str) -> None:
    offers(network("basic"))
    asked.clear()
    offers(network("basic"), setting)
    assert asked == [4, 4]


def test_another_block_is_timed_again(asked: list[int]) -> None:
    offers(network("basic"))
    asked.clear()
    model = network("basic")
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.GELU())
    offers(model)
    assert asked == [4, 4]


def test_what_a_busy_machine_left_undecided_is_timed_again(set_speedups: SetSpeedups) -> None:
    """Speed-ups of 1 within the noise: another run is not told that nothing is faster."""
    asked = set_speedups(dict.fromkeys(range(9), 1.0))
    assert offers(network("basic")) == {}
    assert len(asked) == 3  # the second site is of the first one's structure
    asked.clear()
    assert offers(network("basic")) == {}
    assert len(asked) == 3
    set_speedups(dict.fromkeys(range(9), 2.0))
    assert len(offers(network("basic"))) == 2


@pytest.mark.parametrize("entry", [None, 1, [], {}, {"latency": 1}, {"latency": {}, "keep": {}}])
def test_an_entry_of_another_version_is_replaced(asked: list[int], entry: Any) -> None:
    before = offers(network("basic"))
    (file,) = cache_folder().glob("*.json")
    data = read_json(file)
    whole = data["entries"]
    write_json(file, {**data, "entries": dict.fromkeys(whole, entry)})
    asked.clear()
    assert offers(network("basic")) == before
    assert asked == [4, 4]
    assert read_json(file)["entries"] == whole


def test_a_block_that_is_called_twice_costs_twice(asked: list[int]) -> None:
    model = network("basic")
    found = find(model, images())
    twice = replace(found, sites=tuple(replace(site, calls=2, work=2.0) for site in found.sites))
    singles, doubles = (make_offers(model, each, DEPTH, CPU)[0] for each in (found, twice))
    assert asked == [4, 4]
    for name, (one, *_) in singles.items():
        two = doubles[name][0]
        assert two.macs == 2 * one.macs > 0
        assert two.keep_macs == 2 * one.keep_macs
        assert two.ms == 2 * one.ms
        assert two.keep_ms == 2 * one.keep_ms
        assert two.noise_ms == 2 * one.noise_ms > 0
        assert (two.parameters, two.keep_parameters) == (one.parameters, one.keep_parameters)
        assert two.speedup == one.speedup


class Shifting(nn.Module):
    """Frames of clips as one batch, of which some channels go on to the next frame."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(C, C), conv(C, C)

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, FRAMES))
        clips = torch.cat([clips[:, :, :1].roll(1, 1), clips[:, :, 1:]], 2)
        return x + self.b(self.a(clips.flatten(0, 1)).relu())


class Clips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net([Shifting(), Shifting()])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


def test_a_block_runs_on_all_rows_of_a_sample(asked: list[int]) -> None:
    x, model = images(2 * FRAMES).unflatten(0, (2, FRAMES)), Clips().eval()
    found = make_offers(model, find(model, x), DEPTH, CPU)[0]
    assert len(found) == 2
    for offer, *_ in found.values():
        assert offer.keep_macs == FRAMES * 2 * 9 * C * C * prod(x.shape[-2:])


class Layer(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.batch_first:
            y: Tensor = self.layer(x, src_key_padding_mask=mask)
            return y
        y = self.layer(x.transpose(0, 1), src_key_padding_mask=mask)
        return y.transpose(0, 1)


def test_tokens_before_samples_cost_what_they_do_behind_them(asked: list[int]) -> None:
    example = ModelInputs((torch.randn(2, 6, 8), torch.tensor([[0.0] * 6, [0.0] * 5 + [-9.0]])))
    behind, before = (
        make_offers(model, find(model, example), DEPTH, CPU)[0]
        for model in (Layer(True).eval(), Layer(False).eval())
    )
    assert len(before) == len(behind) == 2
    for name, (offer, *_) in before.items():
        assert offer.shape == (6, 8)
        assert offer.keep_macs == behind[name][0].keep_macs > 0


class SizesOnce(nn.Module):
    """Maps (N, H, W, C): sizes are read once, and the second branch needs them again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(C, C) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x + self.b(self.a(x).relu())
        y = self.c(x).transpose(1, 2).reshape(n * w, h, c)
        y = self.d((y @ y.transpose(1, 2)).softmax(-1) @ y)
        return x + y.reshape(n, w, h, c).transpose(1, 2)


def test_numbers_grow_with_the_samples(asked: list[int]) -> None:
    x, model = torch.randn(2, 9, 7, C), nn.Sequential(SizesOnce(), SizesOnce()).eval()
    offered, refused = make_offers(model, find(model, x), DEPTH, CPU)
    assert not refused
    assert list(offered) == ["0:a", "0:c", "1:a", "1:c"]
    _, h, w, c = x.shape
    assert offered["0:c"][0].keep_macs == 2 * h * w * c * c + 2 * w * h * h * c


def test_a_site_whose_inputs_are_unknown_is_refused_alone(asked: list[int]) -> None:
    x, model = torch.randn(2, 9, 7, C), nn.Sequential(SizesOnce(), SizesOnce()).eval()
    found = find(model, x)
    first, last = (site for site in found.sites if site.name.endswith(":c"))
    larger, *extras = first.larger
    wrong = {
        first.name: replace(first, larger=(larger, *first.extras)),  # as if they did not grow
        last.name: replace(last, larger=(larger, *(10 * extra for extra in extras))),
    }
    sites = tuple(wrong.get(site.name, site) for site in found.sites)
    offered, refused = make_offers(model, replace(found, sites=sites), DEPTH, CPU)
    assert list(offered) == ["0:a", "1:a"]
    assert [(u.name, u.reason.split(":")[0]) for u in refused] == [
        (first.name, "it does not run on inputs made for a batch of 1"),
        (last.name, "what it is given does not grow evenly with the number of samples"),
    ]


class Each(nn.Module):
    """Runs its network on each sample alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network("basic")

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(x[k : k + 1]) for k in range(len(x))])


def test_a_block_that_is_called_for_each_sample_costs_as_much_as_for_a_batch(
    asked: list[int],
) -> None:
    batches, each = offers(network("basic")), offers(Each().eval())
    for name, (offer, *_) in batches.items():
        alone = each[f"net.{name}"][0]
        assert (alone.keep_macs, alone.macs) == (offer.keep_macs, offer.macs)
        assert alone.keep_ms == DEPTH.measure.batch_size * offer.keep_ms


class Biased(nn.Module):
    """Attention, to which the model gives a bias for each of its two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.p = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, 4)).transpose(1, 2)
        y = (q @ q.transpose(-1, -2) + bias).softmax(-1) @ q
        return x + self.p(y.transpose(1, 2).flatten(2))


class Biases(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 6, 6))
        self.blocks = nn.ModuleList([Biased(), Biased()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, self.bias.exp())
        return x


def test_what_has_as_many_entries_as_there_are_samples_need_not_be_of_them(
    asked: list[int],
) -> None:
    model = Biases().eval()
    for samples in (2, 3):
        found = find(model, torch.randn(samples, 6, 8))
        assert [site.inputs_for(5, CPU)[1].shape for site in found.sites] == [(2, 6, 6)] * 2
        assert len(make_offers(model, found, DEPTH, CPU)[0]) == 2


@pytest.mark.parametrize(
    ("family", "layout"), [("basic", "channels_last"), ("mlp_nhwc", "contiguous")]
)
def test_channels_last_maps_are_timed_contiguous(
    family: str, layout: str, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def spy(
        module: nn.Module, inputs: tuple[Any, ...], settings: MeasureSettings
    ) -> Callable[[], object]:
        seen.add(settings.layout)
        return runner(module, inputs, settings)

    monkeypatch.setattr("updp.candidates.timing.runner", spy)
    offers(network(family), "measure.layout=channels_last")
    assert seen == {layout}


def test_a_site_that_the_runtime_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("measure.precision=bfloat16: Basic does not run so")

    monkeypatch.setattr("updp.candidates.timing.runner", refuse)
    with pytest.raises(UserError, match=r"^site 'blocks\.0': measure\.precision=bfloat16: Basic"):
        offers(network("basic"), "measure.precision=bfloat16")


def test_memory_is_counted_beside_the_input(asked: list[int]) -> None:
    (merged, *_), _ = offers(network("basic"), "measure.batch_size=3").values()
    channels, height, width = merged.shape
    assert merged.memory == 2 * 4 * 3 * channels * height * width  # a convolution's, a ReLU's
    assert merged.weights == 4 * merged.parameters
    assert merged.keep_weights > 4 * merged.keep_parameters  # statistics of BatchNorms are there
