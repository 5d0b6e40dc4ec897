"""A merged block as trainable parameters, for a form that is fitted or merged early."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from updp.algebra import Operator
from updp.blocks.reading.steps import per_channel
from updp.candidates.parts.merged_block import MergedBlock
from updp.candidates.parts.trainable import TrainableOperator


class Collapsed(nn.Module):
    """`operators(x) + skip` of a `MergedBlock` as parameters, without its end activation.

    Their dtype and device are those of `like`. `free` says of each operator, and of the skip,
    which weights may be other than 0; None for all.
    """

    def __init__(self, merged: MergedBlock, like: Tensor, free: Sequence[Tensor | None]) -> None:
        super().__init__()
        self._merged = merged
        layout, skip = merged.layout, merged.skip
        self.operators = nn.ModuleList(
            TrainableOperator(op, layout, like, own)
            for op, own in zip(merged.operators, free[:-1], strict=True)
        )
        self.skip = None
        if isinstance(skip, Operator):
            self.skip = TrainableOperator(skip, layout, like, free[-1])
        self.scale = nn.Parameter(skip.to(like)) if isinstance(skip, Tensor) else None

    @property
    def last(self) -> TrainableOperator:
        """The last operator, which is fitted."""
        operator = self.operators[-1]
        assert isinstance(operator, TrainableOperator)
        return operator

    def forward(self, x: Tensor, beside: Tensor | None) -> Tensor:
        """Return the value before the end activation.

        `x` enters the branch, and `beside` is the value of the block's own skip, both in the
        canonical layout.
        """
        y: Tensor = self.last(self.before_last(x))
        skip = self.skip_value(x, beside)
        return y if skip is None else y + skip

    def before_last(self, x: Tensor) -> Tensor:
        """Return the input of the last operator."""
        for operator in self.operators[:-1]:
            x = operator(x)
        return x

    def skip_value(self, x: Tensor, beside: Tensor | None) -> Tensor | None:
        """Return the value added to the branch; None if the skip is merged into its operator."""
        if self.skip is not None:
            value: Tensor = self.skip(x)
            return value
        if self.scale is None:
            return None
        assert beside is not None
        return beside * per_channel(self.scale, self._merged.layout, beside.ndim)

    def merged(self) -> MergedBlock:
        """See `Form.merged`."""
        operators = tuple(own.operator() for own in self.operators)  # type: ignore[operator]
        skip: Operator | Tensor | None = None
        if self.skip is not None:
            skip = self.skip.operator()
        elif self.scale is not None:
            skip = self.scale.detach().double().clone()
        return replace(self._merged, operators=operators, skip=skip)
