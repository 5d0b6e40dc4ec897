"""The whole road of one model: found, half of its sites pruned, merged, compared, loaded again."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from tests.families import error, randomise
from updp.blocks import Findings, find
from updp.blocks.copying import copy_module
from updp.blocks.values import difference
from updp.candidates import proposals
from updp.recipe import CandidateSettings
from updp.supernet import Supernet

SETTINGS = CandidateSettings(drop="always")


def supernet(model: nn.Module, x: Tensor) -> tuple[Findings, Supernet]:
    """A calibrated supernet of a copy of the model."""
    model = copy_module(model).eval()
    findings = find(model, x)
    candidates = {}
    for site in findings.sites:
        candidates[site.name] = [*proposals(findings.traced(site, model), SETTINGS)]
    net = Supernet(model, findings, candidates).eval()
    net.calibrate(x)
    return findings, net


def prune_half(model: nn.Module, x: Tensor, *, first: int = 0, pickles: bool = True) -> nn.Module:
    """Prune every second site, check the merged model in every way, and return it in float32."""
    model.eval()
    with torch.no_grad():
        expected = copy_module(model)(x)
        findings, net = supernet(model, x)
        assert findings.sites, findings.unusable
        assert difference(net(x), expected) < 1e-6  # nothing pruned
        names = [*net.switches][first::2]
        choices = {name: net.switches[name].labels[0] for name in names}
        net.choose(choices)
        for switch in net.switches.values():
            randomise(switch.forms)
        merged, double = net.merged(torch.float64), copy_module(net).double()
        assert difference(merged(x.double()), double(x.double())) < 1e-12
        merged = net.merged()
        assert error(merged(x), net(x)) < 1e-4
        if pickles:
            file = io.BytesIO()
            torch.save(merged, file)
            file.seek(0)
            loaded = torch.load(file, weights_only=False)
            assert torch.equal(loaded(x), merged(x))
        # Into the skeleton of a model with other weights.
        fresh = copy_module(model)
        for tensor in fresh.parameters():
            tensor.normal_()
        _, other = supernet(fresh, x)
        other.choose(choices)
        again = other.merged()
        again.load_state_dict(merged.state_dict())
        assert torch.equal(again(x), merged(x))
    return merged
