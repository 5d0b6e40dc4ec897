import random
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import tiny
from updp.io.figures import Figures
from updp.stages.supernet import every_site_pruned, random_plan, train_sandwich
from updp.supernet import KEEP, Supernet
from updp.tasks import CLASSIFICATION

pytestmark = pytest.mark.usefixtures("fixed_clock")


def test_plans_are_valid_and_cover_all(tiny_model: str) -> None:
    net = tiny.make_net(tiny_model, tiny.make_recipe())
    assert list(every_site_pruned(net)) == list(net.switches)
    net.choose(every_site_pruned(net))
    chance = random.Random(0)
    plans = [random_plan(net, chance) for _ in range(200)]
    for plan in plans:
        net.choose(plan)
        assert [n for n, s in net.switches.items() if s.choice != KEEP] == list(plan)
    assert {len(plan) for plan in plans} == {1, 2, 3, 4}
    assert len({tuple(plan) for plan in plans}) == 15  # every set but the empty one


def one_step(spec: str, net: Supernet, tmp_path: Path, **changes: object) -> None:
    # 1 step: of 35 an epoch has
    recipe = tiny.make_recipe(supernet={"epochs": 1 / 35, "warmup": 0, **changes})
    train_sandwich(tiny.make_context(spec, recipe, tmp_path, net=net))


def test_labels_are_smoothed_and_mixed(tiny_model: str, tmp_path: Path) -> None:
    rows = []
    for name, changes in (
        ("plain", {}),
        ("smooth", {"label_smoothing": 0.5}),
        ("mix", {"mixup": 9}),
    ):
        net = tiny.make_net(tiny_model, tiny.make_recipe())
        one_step(tiny_model, net, tmp_path / name, random_paths=0, **changes)
        rows += Figures(tmp_path / name / "supernet" / "figures.jsonl").rows()
    assert len({row["baseline"] for row in rows}) == 3
    assert rows[0]["pruned"] == rows[1]["pruned"] != rows[2]["pruned"]


@pytest.mark.parametrize("model", ["tiny", "tokens"])
def test_one_step_reaches_shared_weights_and_every_paths_norms(
    model: str, tiny_model: str, tmp_path: Path
) -> None:
    spec = tiny_model.replace(":tiny", f":{model}")
    recipe = tiny.make_recipe(candidates={"end_activation": True})
    net = tiny.make_net(spec, recipe)
    before = {name: value.clone() for name, value in net.weights().items()}
    one_step(spec, net, tmp_path, random_paths=0)
    after = net.weights()
    assert after.keys() == before.keys()
    still = {name for name in before if torch.equal(before[name], after[name])}
    # Between linear operators, the BatchNorm at the end takes every shift out again.
    assert all(re.search(r"\.norms\.\d\.bias$", name) for name in still), still


def test_each_step_trains_the_sandwich_of_paths(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tiny.make_net(tiny_model, tiny.make_recipe())
    ran: list[tuple[str, ...]] = []
    logits: list[Tensor] = []
    teachers: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        ran.append(tuple(n for n, s in net.switches.items() if s.choice != KEEP))
        logits.append(net.model(x))
        return logits[-1]

    plain = CLASSIFICATION.distillation

    def spy(student: Tensor, teacher: Tensor) -> Tensor:
        teachers.append(teacher)
        return plain(student, teacher)

    monkeypatch.setattr(net, "forward", forward)
    monkeypatch.setattr(CLASSIFICATION, "distillation", spy)
    one_step(tiny_model, net, tmp_path, random_paths=3)
    assert ran[0] == ()
    assert ran[1] == tuple(net.switches)
    assert len(ran) == 5
    assert all(ran[2:])
    assert len(teachers) == 4
    assert all(torch.equal(teacher, logits[0]) for teacher in teachers)
    (row,) = Figures(tmp_path / "supernet" / "figures.jsonl").rows()
    assert {"baseline", "pruned", "random", "lr", "gradient", "step"} == row.keys()
