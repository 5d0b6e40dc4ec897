"""Seeds, and that what the caller draws next does not depend on what was drawn here."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import updp
from tests import tiny
from tests.tiny import open_inputs
from updp.data import from_loaders
from updp.io.seeds import mix, random_state
from updp.models import hash_state, load_model

DRAWS = """
import random
import numpy as np
import torch

def noise():
    return random.random() + np.random.rand() + torch.rand(1).item()

def drawn():
    model = Tiny()
    model.head.bias.data += noise()
    return model
"""


class Noisy(Dataset[tuple[Tensor, int]]):
    """Its random transform draws from every state there is."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 8, 8) + random.random() + float(np.random.rand()), index % 10


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()


@contextmanager
def undisturbed() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    yield
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states


@pytest.fixture
def noisy_model(tmp_path: Path) -> str:
    spec = tiny.write_model(tmp_path)
    path = Path(spec.rpartition(":")[0])
    path.write_text(path.read_text() + DRAWS)
    return f"{path}:drawn"


def test_mixed_seeds_are_spread() -> None:
    seeds = {mix(a, b) for a in range(40) for b in range(40)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(1, 2) != mix(2, 1)
    assert mix(0) != mix(0, 0)
    # Neighbours differ in about half of their bits.
    changed = [bin(mix(0, n) ^ mix(0, n + 1)).count("1") for n in range(200)]
    assert 28 < sum(changed) / 200 < 35
    assert min(changed) > 10


def test_states_are_given_back_however_the_work_ends() -> None:
    with undisturbed(), suppress(KeyError), random_state(3):
        draw()
        raise KeyError
    with undisturbed(), random_state():
        draw()


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_a_seed_says_what_is_drawn(seed: int) -> None:
    with random_state(seed):
        first = draw()
    with random_state(seed):
        assert draw() == first
    with random_state(seed - 1 if seed else 1):
        assert not set(draw()) & set(first)


def test_a_factory_that_draws_from_any_state_depends_on_the_seed_alone(noisy_model: str) -> None:
    hashes = [hash_state(load_model(noisy_model, seed=seed)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_loaders_with_random_transforms_have_one_fingerprint() -> None:
    loader = DataLoader(Noisy())
    assert len({from_loaders(loader, loader).fingerprint for _ in range(2)}) == 1


def test_inspect_leaves_the_callers_random_states(noisy_model: str, fixed_clock: None) -> None:
    with undisturbed():
        updp.inspect(noisy_model, (1, 8, 8), tiny.make_recipe())
    model: nn.Module = load_model(noisy_model)
    with undisturbed():
        updp.inspect(model, (1, 8, 8), tiny.make_recipe())


@pytest.mark.parametrize("loaders", [False, True])
def test_opening_inputs_leaves_the_callers_random_states(noisy_model: str, loaders: bool) -> None:
    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 16, "batch_size": 8})
    data = (DataLoader(Noisy(), shuffle=True), DataLoader(Noisy())) if loaders else "digits"
    with undisturbed():
        open_inputs(noisy_model, data, recipe)
