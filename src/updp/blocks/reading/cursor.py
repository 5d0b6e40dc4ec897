"""A tensor on its way through a block: its layout, its zero padding, and the steps so far."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.reading.layouts import OTHER, usual_layout
from updp.blocks.reading.linear import LinearStep
from updp.blocks.reading.probe import (
    channel_order_of,
    crop_of,
    permutation_of,
    zero_padding_of,
)
from updp.blocks.reading.steps import ScaleStep, ShuffleStep, Step, order_of

FLIPPED = "flipped"  # layout of a norm on a transposed sequence of unknown layout


class NotAChain(Exception):
    """A path is not a chain of linear operators, norms and activations; the text says why."""


class Cursor:
    """Collects the steps of a path, runs each on the tensor, and keeps track of its layout.

    The layout of a tensor of 3 to 5 axes is None until a module shows which axis holds the
    channels. `start` is the layout at the entry of the path. `padded` are zeros that were put
    around the tensor, (before, behind) of each axis; the next operator includes them.
    """

    flipped = False  # whether a sequence of unknown layout has been transposed

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.start = self.layout = None if x.ndim in (3, 4, 5) else "last"
        self.flat = x.ndim == 2  # (N, C): the channels are both first and last
        self.steps: list[Step] = []
        self.padded: tuple[tuple[int, int], ...] = ()

    @property
    def layout_now(self) -> str:
        """The layout, or a placeholder as long as it is unknown."""
        return self.layout or (FLIPPED if self.flipped else "")

    @property
    def state(self) -> tuple[Any, ...]:
        """Snapshot of the reading state, to restore later."""
        steps = len(self.steps)
        return self.x, self.start, self.layout, self.padded, self.flipped, steps

    @state.setter
    def state(self, state: tuple[Any, ...]) -> None:
        self.x, self.start, self.layout, self.padded, self.flipped, steps = state
        del self.steps[steps:]

    def advance(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace the tensor by the output of `function`."""
        try:
            self.x = call_user_code(function, self.x.clone())
        except UserCodeError as error:
            raise NotAChain(f"it does not run alone: {error}") from error

    def need(self, layout: str, name: str) -> None:
        """Require that the tensor has this layout; set it if still unknown."""
        if self.layout is None:
            self.layout = layout
            self.start = OTHER[layout] if self.flipped else layout
        elif self.layout != layout:
            raise NotAChain(f"`{name}` does not work along the channels")

    def pad(self, name: str, function: Callable[[Tensor], Tensor]) -> bool:
        """Record zeros that the function puts around the tensor; return False for all others."""
        if (sides := zero_padding_of(function, self.x)) is None:
            return False
        if self.padded:
            raise NotAChain(f"`{name}` pads what is padded already")
        self.padded = sides
        return True

    def crop(self, function: Callable[[Tensor], Tensor]) -> bool:
        """Crop the last convolution as the function does; return False if that is not possible."""
        last = self.steps[-1] if self.steps else None
        if self.layout != "first" or not isinstance(last, LinearStep) or {*last.stride} != {1}:
            return False
        if last.behind or (sides := crop_of(function, self.x)) is None or any(map(any, sides[:2])):
            return False
        self.steps[-1] = last.cropped(sides[2:])
        return True

    def take_padding(self, name: str) -> tuple[tuple[int, int], ...]:
        """Return and reset the recorded padding, for all axes but those of images and channels."""
        sides = [*self.padded]
        if sides:
            ends = sides.pop(1 if self.layout == "first" else -1), sides.pop(0)
            if any(map(any, ends)):
                raise NotAChain(f"`{name}` reads channels that were filled up with zeros")
        self.padded = ()
        return tuple(sides)

    def add(self, step: Step) -> None:
        """Add a step other than a linear operator."""
        if self.padded:
            raise NotAChain(f"`{step.name}` stands between zero padding and its convolution")
        self.steps.append(step)

    def reorder(self, name: str, function: Callable[[Tensor], Tensor]) -> bool:
        """Add a permutation of channels; False for any other function."""
        layout = self.layout or usual_layout(self.x.ndim)
        if (order := channel_order_of(function, self.x, layout)) is None:
            return False
        self.need(layout, name)
        self.add(ShuffleStep(name, order))
        return True

    def scale(self, step: ScaleStep, function: Callable[[Tensor], Tensor]) -> None:
        """Add a factor per channel and advance; raise NotAChain if it is along another axis.

        `function` applies the factor.
        """
        self.add(step)
        x, layout = self.x, self.layout
        self.advance(function)
        if step.parameter.numel() > 1 and not self.flat:
            fitting = [one for one in OTHER if layout in (None, one) and self._is(step, x, one)]
            if not fitting:
                raise NotAChain(f"`{step.name}` scales along another axis than the channels'")
            if len(fitting) == 1:
                self.need(fitting[0], step.name)

    def _is(self, step: ScaleStep, x: Tensor, layout: str) -> bool:
        """Whether the step, with channels in this layout, turns `x` into the current tensor."""
        channels = x.shape[1] if layout == "first" else x.shape[-1]
        if step.parameter.numel() != channels:
            return False
        return torch.allclose(step.keep(x, layout), self.x)

    def permute(self, name: str, call: Callable[[Tensor], Tensor]) -> None:
        """Record that `call` moves the channels; raise NotAChain if it moves other axes."""
        axes = permutation_of(call, self.x.ndim)
        ndim = self.x.ndim
        targets = [t for t in OTHER if ndim > 2 and axes == order_of(t, ndim) and t != self.layout]
        if axes is None or not targets:
            raise NotAChain(f"`{name}` permutes dimensions as {axes}")
        if len(targets) > 1:  # a sequence of unknown layout
            self.flipped = not self.flipped
        else:
            self.need(OTHER[targets[0]], name)
            self.layout = targets[0]
        if self.padded:
            self.padded = tuple(self.padded[axis] for axis in axes)
