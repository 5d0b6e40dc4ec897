"""A whole pipeline in seconds: two small models, a small recipe, a clock that does not vary."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from io import StringIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from updp import Recipe
from updp.blocks import find
from updp.candidates import make_offers
from updp.data import open_source, preprocess_for
from updp.data.feed import Feed
from updp.measure import use_clock
from updp.models import load_model
from updp.run import inputs
from updp.run.given import Data, Given
from updp.run.pipeline import Run, open_run_directory
from updp.run.records import Done
from updp.stages.context import STAGES, Context, InputHashes, InputNames, RunInputs
from updp.supernet import Supernet

MODEL = '''
"""A user's own models for images of 1x8x8."""

import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class Tiny(nn.Module):
    def __init__(self, classes=10, channels=6, depth=4):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(depth)))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(self.dropout(x.mean((2, 3))))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class Tokens(nn.Module):
    def __init__(self, width=8, depth=3):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.Sequential(*(Mlp(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.blocks(self.embed(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


def tiny():
    return Tiny()


def five():
    return Tiny(classes=5)


def calm():
    model = Tiny()
    model.dropout.p = 0.0
    return model


def tokens():
    return Tokens()


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
'''

SETTINGS = {
    "data": {"held_out": 100, "calibration": 64, "batch_size": 32},
    # A table that knows some of a site's candidates would make the others the first ones asked.
    "measure": {"rounds": 3, "batch_size": 2, "cache": False},
    "supernet": {"epochs": 0.3, "checkpoint_seconds": 1e-9},
    "search": {"evaluations": 5, "population": 4, "refined": 4},
    "subnet": {"epochs": 0.3, "checkpoint_seconds": 1e-9},
}


def make_recipe(**changes: Any) -> Recipe:
    """The small recipe, whole parts of it replaced."""
    return Recipe.model_validate({**SETTINGS, "budget": {"blocks": 2}, **changes})


def write_model(folder: Path) -> str:
    """The user's file in `folder`; returns the name of its residual network."""
    path = folder / "model.py"
    path.write_text(MODEL)
    return f"{path}:tiny"


def make_feed(recipe: Recipe, model: nn.Module | None = None) -> Feed:
    source = open_source("digits", input_size=None)
    preprocess = preprocess_for(model or nn.Identity(), source.image_size)
    return Feed(source, preprocess, recipe.data, seed=recipe.seed, device=torch.device("cpu"))


def open_inputs(model: nn.Module | str, data: Data, recipe: Recipe, **options: Any) -> RunInputs:
    """The inputs of a run, with options by the names that `updp.prune` gives them."""
    named = {f.name: options.pop(f.name) for f in fields(Given) if f.name in options}
    return inputs.open_inputs(Given(model, data, **named), recipe, **options)


def make_run(
    spec: str,
    recipe: Recipe,
    out: Path,
    *,
    last: str = "merge",
    restart_from: str = "",
    **given: Any,
) -> Run:
    """A run on digits; `given` are further inputs, such as a plan."""
    return open_run_directory(
        open_inputs(spec, "digits", recipe, **given), out, last=last, restart_from=restart_from
    )


def make_context(
    spec: str, recipe: Recipe, root: Path, *, net: Supernet | None = None, **given: Any
) -> Context:
    """What a stage works with, on the model of the user's file; a `net` is its supernet."""
    baseline = load_model(spec, seed=1).eval()
    feed, classes = make_feed(recipe, baseline), tuple(map(str, range(10)))
    names, hashes = InputNames(model=spec), InputHashes("", "")
    context = Context(names, hashes, baseline, classes, feed, recipe, root=root, **given)
    if net is not None:
        context.net = net
    return context


def make_net(spec: str, recipe: Recipe) -> Supernet:
    """A calibrated supernet of a model of the user's file; needs the fixed clock."""
    model = load_model(spec, seed=1)
    findings = find(model, torch.randn(2, 1, 8, 8))
    offers, _ = make_offers(model, findings, recipe, torch.device("cpu"))
    net = Supernet(model, findings, {n: (found[0].candidate,) for n, found in offers.items()})
    net.calibrate(torch.cat(make_feed(recipe, model).calibration()))
    return net


def fixed_times(
    functions: Mapping[str, object], rounds: int, seconds: float, tick: Callable[[], None]
) -> dict[str, list[float]]:
    """In place of the clock: 10 ms for the first, 1, 2, ... for the others; 50 alone."""
    first = 10.0 if len(functions) > 1 else 50.0
    for _ in range(rounds):
        tick()
    return {name: [i or first] * rounds for i, name in enumerate(functions)}


# -- processes ------------------------------------------------------------------------------------

_context = multiprocessing.get_context("forkserver")
# All that a run imports, so that a process is there at once.
_context.set_forkserver_preload(["tests.tiny", "updp.cli", "sklearn.datasets"])


def start(function: Callable[..., None], *args: Any) -> BaseProcess:
    """Begin `function(*args)` in a process that has imported `updp` and done nothing else."""
    process = _context.Process(target=_run, args=(function, args))
    process.start()
    return process


def fresh(function: Callable[..., None], *args: Any) -> None:
    """Run it there to the end, which must be a good one."""
    process = start(function, *args)
    process.join()
    assert process.exitcode == 0


def prune_quietly(*arguments: str) -> None:
    """`updp ARGUMENTS` without a clock and without a word, in a process of its own."""
    with Path(os.devnull).open("w") as sink, redirect_stdout(sink):
        run_main(*arguments)


def _run(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    with use_clock(fixed_times):
        function(*args)


def run_main(*arguments: str) -> None:
    from updp.cli import main

    before = sys.argv
    sys.argv = ["updp", *arguments]
    try:
        main()
    finally:
        sys.argv = before


def start_together(count: int, function: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """Begin it in as many processes as `torchrun` would, with what it tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(_member, told | {"RANK": n, "LOCAL_RANK": n}, function, args) for n in range(count)
    ]


def together(count: int, function: Callable[..., None], *args: Any) -> None:
    """Run it in several processes to a good end."""
    processes = start_together(count, function, *args)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def _member(
    told: Mapping[str, object], function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    os.environ.update({name: str(value) for name, value in told.items()})
    function(*args)


# -- the command line, in this process ------------------------------------------------------------


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


GUESS = "updp: warning: the model is right on "


def updp(*arguments: str | Path, guess: bool = False) -> Outcome:
    """`updp ARGUMENTS` as a shell would see it. A traceback would be this test's failure.

    The models here are untrained; that they guess is warned of, and left out but with `guess`.
    """
    out, err, code = StringIO(), StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            run_main(*map(str, arguments))
        except SystemExit as end:
            code = int(end.code or 0)
    lines = err.getvalue().splitlines(keepends=True)
    said = (line for line in lines if guess or not line.startswith(GUESS))
    return Outcome(code, out.getvalue(), "".join(said))


def options(recipe: Recipe, spec: str) -> list[str]:
    """Arguments of the stage commands for a new run."""
    sets = [
        f"--set={part}.{name}={value}"
        for part, fields in SETTINGS.items()
        for name, value in recipe.model_dump()[part].items()
        if name in fields
    ]
    return ["--model", spec, "--data", "digits", "--budget", str(recipe.budget), *sets]


def unsealed(run: str | Path) -> Path:
    """The run without the checksums of its files, as of an earlier version: they may be edited."""
    for stage in STAGES:
        Done().write(Path(run) / stage)
    return Path(run)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, byte by byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
