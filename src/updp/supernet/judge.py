"""Repairs judged by the logits of the whole network, on images that no fit has seen.

A repair is fitted to what one operator gave before, which stands in for what counts. A classifier
that is fitted to a few hundred images, or a last block of whose tokens only one is read, may come
nearer to its own target and take the logits away from the baseline's.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.fit import Fitted
from updp.supernet.partial import Walk
from updp.supernet.supernet import Supernet

_SHARES = (1.0, 0.5, 0.25)  # of the way from the weights before a repair to those after it


class Judge:
    """Keeps of each repair the share that brings the logits nearest to the baseline's.

    The distance is KL(baseline || network), a mean over the images of the walk from batch
    `first` on, which must not be used by any fit. While sites are pruned one after another, those
    that are not yet pruned are the baseline's, so that each repair is judged by what it can change.
    """

    def __init__(self, net: Supernet, baseline: Sequence[Tensor], walk: Walk, first: int) -> None:
        """Prepare to judge repairs of `net`; `baseline` are its logits before any change."""
        self._net, self._baseline, self._walk, self._first = net, baseline, walk, first
        self._error = 0.0

    def measure(self, place: nn.Module) -> float:
        """The divergence from the baseline; nothing before `place` may have changed."""
        total, count = 0.0, 0
        for number, target in enumerate(self._baseline, self._first):
            logits = self._walk.output(place, number).double().log_softmax(1)
            wanted = target.double().log_softmax(1)
            total += F.kl_div(logits, wanted, reduction="sum", log_target=True).item()
            count += len(target)
        return total / count

    def pruned(self, place: nn.Module) -> float:
        """Take the network as it is, after a site was pruned, as what a repair has to improve."""
        self._error = self.measure(place)
        return self._error

    def repaired(
        self, place: nn.Module, repair: Callable[[], Fitted]
    ) -> tuple[Fitted, float, float]:
        """Run `repair`, and keep the best share of its change of the weights, or nothing of it.

        Returns:
            What was fitted, the share that was kept, and the divergence with it.
        """
        tensors = [t for t in self._net.weights().values() if t.is_floating_point()]
        before = [t.clone() for t in tensors]
        fitted = repair()
        pairs = zip(tensors, before, strict=True)
        changes = [(t, old, t.clone()) for t, old in pairs if not torch.equal(t, old)]
        errors = {0.0: self._error}
        for share in _SHARES:
            _interpolate(changes, share)
            errors[share] = self.measure(place)
        best = min(errors, key=errors.__getitem__)
        _interpolate(changes, best)
        self._error = errors[best]
        return fitted, best, self._error


def _interpolate(changes: Sequence[tuple[Tensor, Tensor, Tensor]], share: float) -> None:
    """Set tensors to a share of the way from their old to their new values; 0 and 1 are exact."""
    for tensor, old, new in changes:
        tensor.copy_(torch.lerp(old, new, share))


def split(batches: Sequence[Tensor], share: float) -> tuple[list[Tensor], list[Tensor]]:
    """Split batches of images (N, C, H, W) into those to fit to and a share to judge by.

    The last images are those of the judge; none, where that would be a single one.
    """
    wanted = round(share * sum(map(len, batches)))
    fitted, judged = list(batches), list[Tensor]()
    while wanted and (judged or wanted > 1):
        last = fitted.pop()
        kept = max(len(last) - wanted, 0)
        if kept:
            fitted.append(last[:kept])
        judged.insert(0, last[kept:])
        wanted -= len(judged[0])
    return fitted, judged
