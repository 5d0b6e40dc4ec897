"""Networks that come with `updp`: small trained baselines (`zoo/NAME`), and runs that pruned them.

A baseline is a model name like any other (`--model zoo/digits-resnet`), and has its weights. A
pruned network is the published part of a run directory; `updp.load("zoo/NAME")` opens it. All
were made by `examples/digits` in the repository.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from updp.zoo import digits

PREFIX = "zoo/"
_HERE = Path(__file__).parent
_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "digits-resnet": digits.resnet,
    "digits-vit": digits.vit,
}
BASELINES = tuple(_BUILDERS)
PRUNED = tuple(sorted(folder.name for folder in (_HERE / "runs").iterdir()))


def build(name: str) -> nn.Module:
    """One of `BASELINES`, untrained."""
    return _BUILDERS[name]()


def weights_of(name: str) -> Path:
    """The safetensors file with the weights of one of `BASELINES`."""
    return _HERE / "weights" / f"{name}.safetensors"


def run_directory(name: str) -> Path:
    """Return the run directory of one of `PRUNED`, which has only its published files."""
    return _HERE / "runs" / name
