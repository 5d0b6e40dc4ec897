"""Optimiser and learning rate schedule of a training stage: timm's, by name."""

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from updp.errors import UserError, reason
from updp.recipe import OptimizerSettings

_RATES = {"step": 0.1, "poly": 1.0}  # by kind of decay, where the recipe has no decay_rate


def make_optimizer(net: nn.Module, recipe: OptimizerSettings) -> Optimizer:
    """Make the recipe's optimiser over the net's parameters; biases and norms do not decay.

    Raises:
        UserError: the optimiser needs a device or a package that is not here.
    """
    # timm drops `momentum` for optimisers without one (Adam and its kin), but not `betas`.
    betas = {} if recipe.betas is None else {"betas": recipe.betas}
    try:
        optimizer: Optimizer = create_optimizer_v2(
            net,
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            **betas,
        )
    except (AssertionError, ImportError, TypeError) as error:
        raise UserError(
            f"optimizer '{recipe.optimizer}' cannot be used here: {reason(error)}"
        ) from error
    return optimizer


def make_schedule(optimizer: Optimizer, recipe: OptimizerSettings, total: int) -> Scheduler:
    """Make the learning rate a pure function of the step, which `step_update(step)` sets.

    It rises in a straight line from lr / 100 over the first `warmup` of the `total` steps; then,
    with t the share of all steps done, it is lr times

    - cosine: (1 + cos(pi t)) / 2 (Loshchilov & Hutter, *SGDR*, 2017, without restarts)
    - tanh: (1 - tanh(10 t - 7)) / 2 (Hsueh et al., *Stochastic gradient descent with hyperbolic-
      tangent decay*, 2019)
    - poly: (1 - t) ** decay_rate
    - step: decay_rate ** floor(t / decay_every)
    - constant: 1
    """
    rate, every = recipe.decay_rate, max(recipe.decay_every * total, 1e-9)
    name = "step" if recipe.decay == "constant" else recipe.decay
    if rate is None:
        rate = _RATES.get(recipe.decay, 1.0)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=max(total, 1),
        decay_epochs=every,
        decay_rate=1.0 if recipe.decay == "constant" else rate,
        warmup_epochs=round(recipe.warmup * total),
        warmup_lr=recipe.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule
