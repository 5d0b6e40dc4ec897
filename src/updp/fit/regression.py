"""Regression of one operator on one target, from rows that are gathered batch by batch.

Several processes gather the rows of different batches; sums over rows are then summed over the
processes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from updp.algebra import Operator
from updp.fit.channels import entries_of, select_channels
from updp.fit.clamp import Clamp
from updp.fit.gathered import ALL, HELD, TRAIN, GatheredRows
from updp.fit.moments import Moments, relative_error
from updp.fit.ridge import Ridge
from updp.fit.rows import free_of, weights_of, with_weights
from updp.io import processes
from updp.recipe import FitSettings

_CHOOSING = 1e-4  # strength of the ridge while input channels are chosen


@dataclass(frozen=True)
class Fitted:
    """A fitted operator with its error on held-out images.

    operator:     the operator
    error:        mean squared error after the end activation, over the target's variance
    prior_error:  the same error for the prior
    strength:     strength of the chosen ridge; None if the prior was better than all
    rows:         number of rows
    channels:     indices of the input channels that the operator reads; None for all
    """

    operator: Operator
    error: float
    prior_error: float
    strength: float | None
    rows: int
    channels: Tensor | None = None


class Regression:
    """Gathers rows, then solves for an operator.

    Rows are sampled output pixels: at most `settings.rows` per unknown, and as many as fit into
    `settings.rows_mb`. The last fifth of the images of each batch is held out, to choose the
    strength of the ridge and to decide whether the prior is better.

    Args:
        operator: the prior, and the shape of the result.
        clamp: the end activation.
        batches: number of calibration batches, over all processes.
        biased: whether the bias may change; otherwise it stays the prior's.
        keep: number of input channels that stay (one group only); None for all.
        unit: so many input channels, which adjoin, stay or go together; `keep` is a multiple.
        free: which weights may be other than 0, of their shape (all channels stay); None for all.
    """

    def __init__(
        self,
        operator: Operator,
        clamp: Clamp,
        settings: FitSettings,
        batches: int,
        *,
        biased: bool = True,
        keep: int | None = None,
        unit: int = 1,
        free: Tensor | None = None,
    ) -> None:
        assert free is None or keep is None
        self.operator, self.clamp, self.settings = operator, clamp, settings
        self.biased, self.keep, self.unit, self.free = biased, keep, unit, free
        unknowns = operator.weight[0].numel() + 1
        width = (unknowns * operator.groups + 2 * operator.out_channels) * 4
        total = min(settings.rows * unknowns, int(settings.rows_mb * 2**20 / width))
        quota = max(1, total // max(batches, 1))
        # Without an end activation only sums over rows are kept.
        sums = 16 * unknowns * (operator.groups * unknowns + operator.out_channels)
        self.most_target_bytes = quota * batches * operator.out_channels * 4
        self.bytes = quota * batches * width if self._keeps_rows else sums
        self._gathered = GatheredRows(operator, quota)
        self._sums: dict[str, Moments] = {}

    @property
    def _keeps_rows(self) -> bool:
        return not self.clamp.is_identity

    def try_to_share(self, other: "Regression") -> bool:
        """Use the sums of another regression of the same rows; False if this one keeps its rows."""
        if self._keeps_rows:
            return False
        self._sums = other._sums
        return True

    @property
    def target_bytes(self) -> int:
        """Bytes of the gathered targets."""
        return self._gathered.target_bytes

    def thin(self, share: float) -> None:
        """Reduce the rows per batch to a share; the targets must then be gathered again."""
        self._gathered.thin(share)

    def clear(self) -> None:
        """Forget all rows."""
        self._gathered.clear()
        self._sums = {}

    def add_targets(self, batch: int, maps: Tensor) -> None:
        """Add the targets of one batch: the block's maps (N, O, H, W) before its end activation."""
        self._gathered.add_targets(batch, maps)

    def add_inputs(self, batch: int, maps: Tensor, beside: Tensor | None) -> bool:
        """Add the inputs of one batch.

        `maps` (N, I, H, W) is the operator's input, `beside` (N, O, H, W) is added to its output.
        Both are sampled at the pixels of the batch's targets. Returns False if shapes do not match
        the targets': how many rows the operator gets may depend on the values before it.
        """
        if not self._gathered.add_inputs(batch, maps, beside):
            return False
        if not self._keeps_rows:
            self._add_to_sums(batch)
        return True

    def solve(self) -> Fitted:
        """Solve for the operator: choose the ridge on held-out rows, then fit to all rows."""
        return self._solve_from_rows() if self._keeps_rows else self._solve_from_sums()

    def _solve_from_sums(self) -> Fitted:
        """Solve without an end activation, from sums over rows alone; see `solve`.

        The sums are of residuals against the weights before narrowing (`whole`), so solutions are
        computed relative to `whole`.
        """
        train, held = self._sums_of(TRAIN), self._sums_of(HELD)
        for sums in (train, held):
            sums.add_up()
        every = train + held
        judged = held if held.count else every
        whole = weights_of(self.operator).to(self._device)
        channels, left = None, torch.arange(whole.shape[1], device=self._device)
        if self.keep is not None:
            cross = every.cross + every.gram @ whole
            channels, left = self._narrow(self.keep, every.gram, cross)
        prior = weights_of(self.operator).to(self._device)

        def solved(sums: Moments, strength: float) -> Tensor:
            gram, cross = sums.gram[:, left], sums.cross[:, left] + sums.gram[:, left] @ whole
            return self._ridge(gram[:, :, left], prior, strength).solve(cross)

        def error(weights: Tensor) -> float:
            change = -whole
            change[:, left] += weights
            return judged.error(change)

        errors = {s: error(solved(train, s)) for s in self.settings.ridge}
        strength = min(errors, key=errors.__getitem__)
        best, prior_error = errors[strength], error(prior)
        rows = every.count // self.operator.out_channels
        if prior_error <= best:
            return self._unchanged(prior_error, rows, channels)
        weights = solved(every, strength)
        return Fitted(self._with(weights), best, prior_error, strength, rows, channels)

    def _solve_from_rows(self) -> Fitted:
        """Solve from stored rows, clamping the targets anew in each round; see `solve`."""
        (gram, cross), (gram_held, cross_held) = (
            self._gram_and_cross(TRAIN),
            self._gram_and_cross(HELD),
        )
        channels = None
        if self.keep is not None:
            channels, left = self._narrow(self.keep, gram + gram_held, cross + cross_held)
            gram, gram_held = (m[:, left][:, :, left] for m in (gram, gram_held))
            cross, cross_held = cross[:, left], cross_held[:, left]
        # The strength is chosen without the end activation, whose rounds take most of the time.
        prior = weights_of(self.operator).to(self._device)
        errors = {
            s: self._error(self._ridge(gram, prior, s).solve(cross)) for s in self.settings.ridge
        }
        strength = min(errors, key=errors.__getitem__)
        weights = self._follow(self._ridge(gram, prior, strength), cross, TRAIN)
        error, prior_error = self._error(weights), self._error(prior)
        rows = int(self._over_processes(self._gathered.count()))
        if prior_error <= error:
            return self._unchanged(prior_error, rows, channels)
        ridge = self._ridge(gram + gram_held, prior, strength)
        weights = self._follow(ridge, cross + cross_held, ALL)
        return Fitted(self._with(weights), error, prior_error, strength, rows, channels)

    def _sums_of(self, part: str) -> Moments:
        """The sums of a part of the rows."""
        if part not in self._sums:
            operator = self.operator
            unknowns = operator.weight[0].numel() + 1
            sizes = operator.groups, unknowns, operator.out_channels
            self._sums[part] = Moments.of(*sizes, self._device)
        return self._sums[part]

    def _add_to_sums(self, batch: int) -> None:
        """Add the rows of a batch to the sums, then discard them."""
        prior = weights_of(self.operator).to(self._device)
        for part in (TRAIN, HELD):
            for x, target, beside in self._gathered.rows(part):
                self._sums_of(part).add(x, target - beside - x @ prior, target)
        self._gathered.forget(batch)

    def _narrow(self, keep: int, gram: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
        """Cut operator and rows to `keep` input channels; return these and their unknowns."""
        operator = self.operator
        ridge = self._ridge(gram, weights_of(operator).to(self._device), _CHOOSING)
        taps, unit = operator.weight[0, 0].numel(), self.unit
        units = select_channels(
            ridge.inverse()[0], ridge.solve(cross)[0], taps * unit, keep // unit
        )
        channels = entries_of(units, unit)
        unknowns = entries_of(channels, taps)
        left = torch.cat([unknowns, channels.new_tensor([gram.shape[1] - 1])])
        channels = channels.to(operator.weight.device)
        self.operator = replace(operator, weight=operator.weight[:, channels])
        self._gathered.narrow(left)
        return channels, left

    def _unchanged(self, error: float, rows: int, channels: Tensor | None) -> Fitted:
        """The operator with the weights before the fit, but for channels that were cut."""
        return Fitted(self.operator, error, error, None, rows, channels)

    def _with(self, weights: Tensor) -> Operator:
        return with_weights(self.operator, weights.to(self.operator.weight.device))

    def _ridge(self, gram: Tensor, prior: Tensor, strength: float) -> Ridge:
        free = None if self.free is None else free_of(self.operator, self.free).to(gram.device)
        return Ridge(gram, prior, strength, biased=self.biased, free=free)

    def _follow(self, ridge: Ridge, cross: Tensor, part: str) -> Tensor:
        """Solve, then solve again with targets moved to equivalent clamped values; see `Clamp`."""
        weights = ridge.solve(cross)
        for _ in range(self.settings.rounds):
            weights = ridge.solve(self._cross(weights, part))
        return weights

    def _gram_and_cross(self, part: str) -> tuple[Tensor, Tensor]:
        """X'X (g, D, D) and X'T (g, D, O / g) of a part of the rows."""
        unknowns, operator = self.operator.weight[0].numel() + 1, self.operator
        sums = Moments.of(operator.groups, unknowns, operator.out_channels, self._device)
        for x, target, beside in self._gathered.rows(part):
            sums.add(x, target - beside, target)
        sums.add_up()
        return sums.gram, sums.cross

    def _cross(self, weights: Tensor, part: str) -> Tensor:
        """X'T (g, D, O / g), with clamped targets moved to the point nearest to X W."""
        total = torch.zeros_like(weights)
        for x, target, beside in self._gathered.rows(part):
            target = self.clamp.nearest(target, x @ weights + beside)
            total.baddbmm_(x.mT, target - beside)
        processes.all_reduce(total)
        return total

    def _error(self, weights: Tensor) -> float:
        """Mean squared error on held-out rows divided by the target's variance, as in `Fitted`."""
        part = HELD if self._over_processes(self._gathered.count(HELD)) else ALL
        sums = torch.zeros(4, dtype=torch.float64, device=self._device)
        for x, target, beside in self._gathered.rows(part):
            target, value = self.clamp(target), self.clamp(x @ weights + beside)
            wrong = (value - target).square().sum()
            parts = wrong, target.sum(), target.square().sum(), wrong.new_tensor(target.numel())
            sums += torch.stack(parts)
        processes.all_reduce(sums)
        return relative_error(*sums.tolist())

    def _over_processes(self, number: float) -> float:
        """The sum of a number over all processes."""
        total = torch.tensor(number, dtype=torch.float64, device=self._device)
        processes.all_reduce(total)
        return total.item()

    @property
    def _device(self) -> torch.device:
        return self._gathered.device
