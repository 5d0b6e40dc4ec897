from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from updp.candidates import Form, MergedBlock
from updp.supernet import GATES, KEEP, Switch


class Twice(Form):
    """2x + 1, and in between x for the annealing gate; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[float] = []

    def forward(self, x: Tensor, lam: float = 1.0) -> Tensor:
        self.calls.append(lam)
        return x + lam * (x + 1)

    def calibrate(self, x: Tensor) -> None: ...

    def merged(self) -> MergedBlock:
        raise NotImplementedError


@pytest.fixture
def switch() -> Switch:
    return Switch(nn.ReLU(inplace=True), {"a": Twice(), "b": Twice()})


def x() -> Tensor:
    return torch.tensor([-1.0, 2.0])


def test_a_new_switch_runs_the_baseline_and_has_lambda_1(switch: Switch) -> None:
    assert (switch.choice, switch.lam) == (KEEP, 1.0)
    assert switch.gate in GATES
    assert torch.equal(switch(x()), torch.tensor([0.0, 2.0]))
    assert not switch.form("a").calls


@pytest.mark.parametrize("gate", GATES)
def test_at_lambda_1_only_the_chosen_form_runs(switch: Switch, gate: str) -> None:
    switch.choice, switch.gate = "b", gate
    switch.keep = nn.Module()  # would raise
    assert torch.equal(switch(x()), 2 * x() + 1)
    assert (switch.form("a").calls, switch.form("b").calls) == ([], [1.0])


@pytest.mark.parametrize("lam", [0.0, 0.25])
def test_blend_mixes_outputs_though_the_baseline_works_in_place(switch: Switch, lam: float) -> None:
    switch.choice, switch.gate, switch.lam = "a", "blend", lam
    expected = (1 - lam) * x().relu() + lam * (2 * x() + 1)
    torch.testing.assert_close(switch(x()), expected)


def test_anneal_is_left_to_the_form(switch: Switch) -> None:
    switch.choice, switch.gate, switch.lam = "a", "anneal", 0.25
    switch.keep = nn.Module()
    torch.testing.assert_close(switch(x()), x() + 0.25 * (x() + 1))


def test_forms_are_found_by_label(switch: Switch) -> None:
    assert switch.labels == ("a", "b")
    assert switch.form("b") is switch.forms[1]
    with pytest.raises(ValueError, match="not in tuple"):
        switch.form("c")
