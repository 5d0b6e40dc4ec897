"""Proof that a merged model computes what was trained (DESIGN, rule 6)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from updp import recipe as recipes
from updp.errors import MergeError
from updp.rewrite import Supernet


@dataclass(frozen=True)
class Check:
    """Relative L2 error of one block, or of the logits (`where` is empty), on one input."""

    where: str
    dtype: str
    source: str
    error: float
    border: float | None = None
    interior: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@torch.no_grad()
def verify(
    net: Supernet,
    images: Tensor,
    settings: recipes.Merge,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
) -> list[Check]:
    """Compare subnet and merged model under the present choices, block by block and end to end.

    On `images` (N, C, H, W) and on random input of that shape, in each of `dtypes`. Each
    merged block is fed what its subnet block was fed.

    Raises:
        MergeError: an error is above its tolerance; the first is named.
    """
    checks: list[Check] = []
    limits = {
        torch.float64: settings.tolerance_float64,
        torch.float32: settings.tolerance_float32,
    }
    for dtype in dtypes:
        limit = limits[dtype]
        subnet = copy.deepcopy(net).to(dtype).eval()
        merged = net.merged(dtype)
        random = torch.randn(
            images.shape, generator=torch.Generator().manual_seed(0), dtype=dtype
        ).to(images.device)
        for source, x in (("random", random), ("images", images.to(dtype))):
            found = _compare(subnet, merged, x, str(dtype).removeprefix("torch."), source)
            for check in found:
                if not check.error <= limit:
                    raise MergeError(
                        f"merged {check.where or 'model'} differs from what was trained by "
                        f"{check.error:.1e} ({check.dtype}, {source}; at most {limit:.0e}): "
                        "nothing was written"
                    )
            checks += found
    return checks


def _compare(
    subnet: Supernet, merged: nn.Module, x: Tensor, dtype: str, source: str
) -> list[Check]:
    calls: dict[str, tuple[tuple, dict, Tensor]] = {}

    def recorder(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            calls[name] = (args, kwargs, output)

        return hook

    handles = [
        subnet.model.get_submodule(name).register_forward_hook(recorder(name), with_kwargs=True)
        for name in subnet.pruned_blocks()
    ]
    logits = subnet(x)
    for handle in handles:
        handle.remove()
    checks = []
    for name, (args, kwargs, expected) in calls.items():
        y = merged.get_submodule(name)(*args, **kwargs)
        border, interior = _split(y, expected)
        error = relative(y, expected)
        checks.append(Check(name, dtype, source, error, border, interior))
    return [*checks, Check("", dtype, source, relative(merged(x), logits))]


def relative(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||, infinite when the shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    return ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def _split(actual: Tensor, expected: Tensor, width: int = 3) -> tuple[float | None, float | None]:
    """Errors of a feature map's outermost pixels and of the rest; None where it has none."""
    if actual.ndim != 4 or min(actual.shape[2:]) <= 2 * width:
        return None, None
    inside = torch.zeros_like(actual, dtype=torch.bool)
    inside[:, :, width:-width, width:-width] = True
    return (
        relative(actual[~inside], expected[~inside]),
        relative(actual[inside], expected[inside]),
    )
