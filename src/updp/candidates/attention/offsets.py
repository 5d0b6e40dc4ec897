"""Constants that attention adds to its logits for any tokens: a position bias, a mask.

They are computed from the softmax's input, less the products of queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_TOLERANCE = 1e-9  # relative, in float64: how far the offsets of two images may differ
_MASKED = -1e4  # added to masked logits; representable in every precision
_LARGEST = 2**25  # number of logits, 1/4 GiB in float64: larger ones are not read
_SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax}


class Offsets(nn.Module):
    """A constant to add to the logits of attention, (windows, heads, T, T).

    If there are several windows, the first axis of the attention's input holds the windows of each
    image one after another.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self) -> Tensor:
        """The constant with windows and heads in one axis: (windows * heads, T, T)."""
        return self.values.flatten(0, 1)  # type: ignore[operator, no-any-return]


class SoftmaxWatcher(TorchFunctionMode):
    """Records the input of each softmax, and the mask that torch's attention adds to its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[Tensor] = []  # (..., T, T)
        self.added: list[Tensor] = []  # (..., T, T)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _SOFTMAX:
            given = args[0] if args else kwargs.get("input")
            if isinstance(given, Tensor) and given.ndim > 2 and given.numel() <= _LARGEST:
                self.logits.append(given.detach().clone())
        if func is F.scaled_dot_product_attention:
            with suppress(RuntimeError):  # a mask of another form than (..., T, T)
                self._note(*args, **kwargs)
        return result

    def _note(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> None:
        """Record the mask of a call of torch's attention, as values added to its logits."""
        if is_causal:
            attn_mask = causal(query.shape[-2], query)
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, _MASKED).to(query)
        if attn_mask is not None:
            shape = (*query.shape[:-1], key.shape[-2])
            self.added.append(attn_mask.detach().clone().expand(shape))

    def saw(self, count: int, heads: int, tokens: int) -> bool:
        """Whether logits of `count` images or windows with these sizes were recorded."""
        return is_small(count, heads, tokens) and any(
            seen.shape[-2:] == (tokens, tokens) and seen.numel() == count * heads * tokens**2
            for seen in (*self.logits, *self.added)
        )

    def offsets(self, logits: Tensor, windows: int = 0) -> Iterator[Tensor]:
        """Every constant (windows, heads, T, T) that may explain recorded logits beside `logits`.

        Args:
            logits: (N, heads, T, T), computed from the tokens alone.
            windows: number of windows; 0: the smallest number that explains the recorded logits.
        """
        for seen, known in [(s, 0) for s in self.added] + [(s, logits) for s in self.logits]:
            # One axis may hold images and heads.
            if seen.numel() == logits.numel() and seen.shape[-2:] == logits.shape[-2:]:
                yield from _repeated(seen.reshape(logits.shape) - known, windows)


def is_small(count: int, heads: int, tokens: int) -> bool:
    """Whether there are few enough logits to compare them all at once."""
    return count * heads * tokens**2 <= _LARGEST


def causal(tokens: int, like: Tensor) -> Tensor:
    """The causal mask (T, T), which hides later tokens from earlier ones."""
    return like.new_full((tokens, tokens), _MASKED).triu(1)


def _repeated(offsets: Tensor, windows: int) -> Iterator[Tensor]:
    """The part of offsets (N, heads, T, T) that repeats for every image, if there is one."""
    offsets = offsets.clamp_min(_MASKED)
    if windows:
        yield offsets[:windows]
        return
    for count in (n for n in range(1, len(offsets) // 2 + 1) if len(offsets) % n == 0):
        part = offsets[:count]
        again = part.repeat(len(offsets) // count, 1, 1, 1)
        if (again - offsets).norm() <= _TOLERANCE * (1 + offsets.norm()):
            yield part
            return
