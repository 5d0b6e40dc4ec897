"""The rows of a regression: gathered batch by batch, targets first, and handed out in chunks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from updp.algebra import Operator, sides_of
from updp.fit.rows import Sample

_CHUNK = 4096  # maximum number of rows converted to float64 at a time
ALL, TRAIN, HELD = "all", "train", "held"  # which rows: all, those fitted to, those held out


class GatheredRows:
    """Rows by batch: sampled pixels, their targets, their input patches and the added values.

    The last fifth of the images of each batch is held out.

    Args:
        operator: the operator that reads the patches.
        quota: maximum number of rows per batch.
    """

    def __init__(self, operator: Operator, quota: int) -> None:
        self._operator, self._quota = operator, quota
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self._samples: dict[int, Sample] = {}
        self._sizes: dict[int, tuple[int, ...]] = {}  # (N, H, W) of the targets
        self._trained: dict[int, int] = {}  # number of rows before the held-out images
        self._targets: dict[int, Tensor] = {}
        self._inputs: dict[int, Tensor] = {}
        self._beside: dict[int, Tensor] = {}

    def forget(self, batch: int) -> None:
        """Forget the rows of a batch."""
        for values in (self._targets, self._inputs, self._beside):
            values.pop(batch, None)

    def thin(self, share: float) -> None:
        """Reduce the rows per batch to a share; the targets must then be gathered again."""
        most = max(len(t) for t in self._targets.values())
        self._quota = max(1, int(share * min(self._quota, most)))

    def add_targets(self, batch: int, maps: Tensor) -> None:
        """Sample pixels of a batch's maps (N, O, H, W)."""
        images, _, *sizes = maps.shape
        sample = Sample.draw(images, sizes, self._quota, batch)
        trained = images - max(images // 5, min(images - 1, 1))
        self._samples[batch], self._sizes[batch] = sample, (images, *sizes)
        self._trained[batch] = int((sample.image < trained).sum())
        self._targets[batch] = sample.of(maps)

    def add_inputs(self, batch: int, maps: Tensor, beside: Tensor | None) -> bool:
        """Take patches of `maps` (N, I, H, W) and values of `beside` (N, O, H, W) at these pixels.

        Returns False, and stores nothing, where the shape differs from that of the targets.
        """
        sample = self._samples[batch]
        if _output_sizes(self._operator, maps) != self._sizes[batch]:
            return False
        self._inputs[batch] = sample.patches(maps, self._operator)
        if beside is not None:
            self._beside[batch] = sample.of(beside)
        return True

    def narrow(self, unknowns: Tensor) -> None:
        """Keep only these unknowns (indices) of the patches."""
        for batch, rows in self._inputs.items():
            self._inputs[batch] = rows[..., unknowns.to(rows.device)]

    @property
    def target_bytes(self) -> int:
        """Bytes of the targets."""
        return sum(t.nbytes for t in self._targets.values())

    @property
    def device(self) -> torch.device:
        """The operator's device, where rows are in float64."""
        return self._operator.weight.device

    def count(self, part: str = ALL) -> int:
        """Number of rows of a part."""
        sizes = (
            (len(targets), self._span(batch, part)) for batch, targets in self._targets.items()
        )
        return sum(len(range(size)[span]) for size, span in sizes)

    def rows(self, part: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Chunks of rows in float64: inputs (g, m, D), targets and added values (g, m, O / g)."""
        for batch, inputs in self._inputs.items():
            span = self._span(batch, part)
            x, target = inputs[:, span], self._targets[batch][span]
            if not len(target):
                continue
            target = self._grouped(target)
            beside = torch.zeros_like(target)
            if batch in self._beside:
                beside = self._grouped(self._beside[batch][span])
            chunks = (torch.split(t, _CHUNK, 1) for t in (x, target, beside))
            for parts in zip(*chunks, strict=True):
                x64, target64, beside64 = (t.to(self.device).double() for t in parts)
                yield x64, target64, beside64

    def _span(self, batch: int, part: str) -> slice:
        trained = self._trained[batch]
        return {ALL: slice(None), TRAIN: slice(trained), HELD: slice(trained, None)}[part]

    def _grouped(self, values: Tensor) -> Tensor:
        return values.reshape(len(values), self._operator.groups, -1).transpose(0, 1)


def _output_sizes(operator: Operator, maps: Tensor) -> tuple[int, ...]:
    """Output shape (N, H, W) of the operator for maps (N, I, H, W)."""
    images, _, *sizes = maps.shape
    axes = zip(
        sizes,
        sides_of(operator.padding),
        operator.kernel_size,
        operator.dilation,
        operator.stride,
        strict=True,
    )
    return (images, *((s + sum(p) - d * (k - 1) - 1) // step + 1 for s, p, k, d, step in axes))
