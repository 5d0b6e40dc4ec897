"""Compare the outputs of an exported file with those of the PyTorch model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from updp.blocks.modules import UserCodeError, try_user_code
from updp.blocks.nested import Samples, call, tensors_in
from updp.data.feed import Feed
from updp.deploy.export.base import Network
from updp.deploy.export.program import other_inputs
from updp.run.plain import by_position

_TOLERANCE = 1e-4  # accepted difference of a logit in float32
_RESOLUTION = 1e-6  # relative to the largest logit: float32 keeps this through layers
_SIZES = (1, 2, 3, 16)  # sizes of the first batches: a graph may be fixed to one of them


@dataclass(frozen=True)
class Parity:
    """How far a file's logits, or other outputs, are from PyTorch's, over `images` samples.

    `max_rel` is relative to the largest logit of an image. `agreement` is a share in percent; 100
    if the model is not a classifier.
    """

    images: int
    max_abs: float
    max_rel: float
    agreement: float
    undecided: int  # images whose two best logits are within twice the tolerance
    tolerance: float

    @property
    def good(self) -> bool:
        """Whether no logit differs by more than the tolerance; NaN is not good."""
        return self.max_abs <= self.tolerance and self.agreement == 100

    def __str__(self) -> str:
        return (
            f"on {self.images} images logits differ by {self.max_abs:.0e} (allowed: "
            f"{self.tolerance:.0e}) and the best class agrees on {self.agreement:.2f} %"
        )


def batches(feed: Feed, limit: int) -> Iterator[Samples]:
    """The inputs of the first `limit` test samples on the CPU, in batches of several sizes.

    Several inputs are passed by position.
    """
    sizes = iter(_SIZES)
    for inputs, _ in feed.test():
        rest = by_position(inputs[:limit].to("cpu"))
        limit -= len(rest)
        while len(rest):
            size = next(sizes, len(rest))
            part = rest[:size]
            yield part.contiguous() if isinstance(part, Tensor) else part.clone()
            rest = rest[size:]
        if limit == 0:
            return


@torch.inference_mode()
def logits(model: Callable[..., Tensor], inputs: Iterable[Samples]) -> Tensor:
    """Logits (N, classes) of all batches; rows (N, size), padded, if sequences differ in length."""
    found = [call(model, batch) for batch in inputs]
    if len({x.shape[1:] for x in found}) > 1:
        rows = [x.flatten(1) for x in found]
        longest = max(x.shape[1] for x in rows)
        found = [functional.pad(x, (0, longest - x.shape[1])) for x in rows]
    return torch.cat(found)


def compare(expected: Tensor, found: Tensor, classifies: bool = True) -> Parity:
    """Compare logits (N, classes) of the same images; tied best classes may swap.

    Other outputs (N, ...) are compared only by their values.
    """
    if not classifies:
        expected, found = (x.reshape(len(x), -1) for x in (expected, found))
    tolerance = max(_TOLERANCE, _RESOLUTION * float(expected.abs().max()))
    difference = (expected - found).abs().amax(1)
    best = expected.topk(min(2, expected.shape[1])).values
    undecided = (best[:, 0] - best[:, -1] < 2 * tolerance) & (expected.shape[1] > 1)
    if not classifies:
        undecided = torch.ones_like(undecided)
    agree = (expected.argmax(1) == found.argmax(1)) | undecided
    return Parity(
        images=len(expected),
        max_abs=float(difference.max()),
        max_rel=float((difference / expected.abs().amax(1).clamp(min=1e-12)).max()),
        agreement=100 * int(agree.sum()) / len(agree),
        undecided=int(undecided.sum()) if classifies else 0,
        tolerance=tolerance,
    )


def resized(model: nn.Module, inputs: Samples) -> Iterator[tuple[Samples, Tensor]]:
    """Inputs at other sizes with their logits, for sizes that the model accepts."""
    for scaled in other_inputs(inputs):
        try:
            expected = try_user_code(logits, model, [scaled])
        except UserCodeError:  # the model does not take this size
            continue
        yield scaled, expected


def compare_sizes(
    network: Network, others: Iterable[tuple[Samples, Tensor]], classifies: bool = True
) -> dict[tuple[int, ...], Parity]:
    """Parity at each further size of the first input. Raises any error of the runtime."""
    found = {}
    for inputs, expected in others:
        shape = tuple(tensors_in(inputs)[0].shape[1:])
        found[shape] = compare(expected, logits(network, [inputs]), classifies)
    return found
