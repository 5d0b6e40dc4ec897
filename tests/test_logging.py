"""The logger `updp`: what was refused and why, what was cached, what fell back."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.families import images, network
from updp.blocks import find
from updp.candidates import make_offers
from updp.candidates.narrow.channels import InnerChannels
from updp.recipe import Recipe


def test_nothing_is_said_unless_asked(finished: Path) -> None:
    quiet = tiny.updp("prune", "--out", finished)
    loud = tiny.updp("prune", "--out", finished, "--verbose")
    assert (quiet.code, quiet.err, loud.code) == (0, "", 0)
    assert "updp.run.pipeline: search has ended before\n" in loud.err


def test_what_cannot_be_pruned_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(x)) if x.sum() > 0 else x

    with caplog.at_level(logging.INFO, "updp"):
        find(nn.Sequential(Odd(), Odd()).eval(), torch.randn(2, 4, 6, 6))
    assert "0 cannot be pruned: it cannot be traced: " in caplog.text


def test_a_bug_of_ours_is_not_taken_for_a_block_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, fixed_clock: None
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    model = network("basic")
    findings = find(model, images())
    monkeypatch.setattr(InnerChannels, "cut", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        make_offers(model, findings, Recipe(), torch.device("cpu"))


def test_warnings_are_seen_where_nobody_has_set_up_logging() -> None:
    code = "import logging, updp; logging.getLogger('updp.data').warning('look here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "look here"


def test_a_budget_beside_a_plan_is_said_to_be_idle(
    tmp_path: Path, finished: Path, fixed_clock: None
) -> None:
    spec, plan = tiny.write_model(tmp_path), finished / "plan.json"
    asked = [*tiny.options(tiny.make_recipe(), spec), "--plan", plan, "--out", tmp_path / "run"]
    outcome = tiny.updp("merge", *asked)  # there is no run yet, and nothing to merge
    assert "the budget blocks=2 is ignored, for a plan is given" in outcome.err
