"""Optimiser and learning rate schedule of a training stage, from timm by name."""

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from updp.errors import UserError, reason
from updp.recipe import OptimizerSettings

_RATES = {"step": 0.1, "poly": 1.0}  # default decay_rate by kind of decay


def make_optimizer(net: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """Make the recipe's optimiser for the net's parameters; biases and norms have no decay.

    Raises:
        UserError: the optimiser needs a device or a package that is missing.
    """
    # timm drops `momentum` for optimisers without it (such as Adam), but not `betas`.
    betas = {} if settings.betas is None else {"betas": settings.betas}
    try:
        optimizer: Optimizer = create_optimizer_v2(
            net,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            **betas,
        )
    except (AssertionError, ImportError, TypeError) as error:
        raise UserError(
            f"optimizer '{settings.optimizer}' cannot be used here: {reason(error)}"
        ) from error
    return optimizer


def whole_steps(steps: float) -> int:
    """Round to whole steps, but at least one: only exactly 0 turns training off."""
    return max(1, round(steps)) if steps else 0


def make_schedule(optimizer: Optimizer, settings: OptimizerSettings, total: int) -> Scheduler:
    """Make the learning rate a pure function of the step, which `step_update(step)` sets.

    Over the first `warmup` of the `total` steps it rises linearly from lr / 100. Then, with t the
    share of all steps done, it is lr times

    - cosine: (1 + cos(pi t)) / 2 (Loshchilov & Hutter, *SGDR*, 2017, without restarts)
    - tanh: (1 - tanh(10 t - 7)) / 2 (Hsueh et al., *Stochastic gradient descent with hyperbolic-
      tangent decay*, 2019)
    - poly: (1 - t) ** decay_rate
    - step: decay_rate ** floor(t / decay_every)
    - constant: 1
    """
    rate, every = settings.decay_rate, max(settings.decay_every * total, 1e-9)
    name = "step" if settings.decay == "constant" else settings.decay
    if rate is None:
        rate = _RATES.get(settings.decay, 1.0)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=max(total, 1),
        decay_epochs=every,
        decay_rate=1.0 if settings.decay == "constant" else rate,
        warmup_epochs=round(settings.warmup * total),
        warmup_lr=settings.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule
