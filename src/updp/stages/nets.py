"""A run's supernets: copies of its baseline with the candidates that it decided on."""

from __future__ import annotations

import copy

import torch
from torch import nn

from updp.blocks import Findings, find
from updp.candidates import Offers, planned, selected
from updp.data.feed import Feed
from updp.run.job import Job
from updp.supernet import Supernet


def findings_of(model: nn.Module, job: Job) -> Findings:
    """The sites of `model` that the job's recipe lets be pruned.

    Raises UserError: a glob of the recipe fits no site.
    """
    seed = torch.Generator().manual_seed(0)
    example = torch.randn(2, *job.source.image_size, generator=seed)
    settings = job.recipe.candidates
    return selected(find(model, example.to(job.device)), settings.include, settings.exclude)


def make_net(baseline: nn.Module, job: Job, offers: Offers, feed: Feed) -> Supernet:
    """A supernet on a copy of `baseline`, calibrated, with all that may be chosen."""
    model = copy.deepcopy(baseline)
    findings = findings_of(model, job)
    candidates = {name: tuple(o.candidate for o in found) for name, found in offers.items()}
    if job.plan is not None:
        for name, given in planned(job.plan, findings).items():
            offered = candidates.get(name, ())
            candidates[name] = (*offered, *(c for c in given if c not in offered))
    net = Supernet(model, findings, candidates)
    net.calibrate(torch.cat(feed.calibration()))
    return net
