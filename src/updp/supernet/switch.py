"""A site in the supernet: the baseline's path or one of its candidates."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from updp.candidates import Form, blend

KEEP = "keep"
GATES = ("blend", "anneal")


class Switch(nn.Module):
    """A site's baseline path and its candidates' forms; `choice` says which one runs.

    `lam` is lambda, from the baseline block (0) to the pruned block (1). Of the two gates `blend`
    mixes the outputs of both, and `anneal` turns the block's own activations and norms into the
    pruned block's (UPDP, *Progressive subnet training*). With `checkpointing` the activations
    inside of it are not kept for the backward, which computes them again.
    """

    def __init__(self, keep: nn.Module, forms: dict[str, Form]) -> None:
        super().__init__()
        self.keep = keep
        self.labels = tuple(forms)
        self.forms = nn.ModuleList(forms.values())
        self.choice = KEEP
        self.gate = "blend"
        self.lam = 1.0
        self.checkpointing = False

    def form(self, label: str) -> Form:
        """The form of the candidate called `label`."""
        form = self.forms[self.labels.index(label)]
        assert isinstance(form, Form)
        return form

    @property
    def running(self) -> nn.Module:
        """The path that runs at lambda 1."""
        return self.keep if self.choice == KEEP else self.form(self.choice)

    def forward(self, x: Tensor, *extras: Any) -> Tensor:
        """The site's output under the present choice."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self._run(x, *extras)
        output: Tensor = checkpoint(
            self._run_on_copy, x, *extras, use_reentrant=False, context_fn=self._contexts
        )
        return output

    def _run_on_copy(self, x: Tensor, *extras: Any) -> Tensor:
        # The path may work in place on x, from which the second run starts, too.
        return self._run(x.clone(), *extras)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of the first and of the second run, which may not count in statistics again."""
        return nullcontext(), _statistics_kept(self)

    def _run(self, x: Tensor, *extras: Any) -> Tensor:
        output: Tensor
        if self.choice == KEEP:
            output = self.keep(x, *extras)
        elif self.gate == "anneal" and self.lam != 1:
            output = self.form(self.choice)(x, *extras, lam=self.lam)
        else:
            # The form first: the baseline's path may work in place on x.
            output = self.form(self.choice)(x, *extras)
            if self.lam != 1:
                output = blend(self.keep(x, *extras), output, self.lam)
        return output


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let the BatchNorms in `module` normalise as before, but leave their statistics alone."""
    found = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [norm.momentum for norm in found]
    counts = [(c, c.clone()) for norm in found if (c := norm.num_batches_tracked) is not None]
    try:
        for norm in found:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(found, momenta, strict=True):
            norm.momentum = momentum
        for count, value in counts:
            count.copy_(value)


class ModalForward:
    """The forward of a block that takes another way in training, in the supernet.

    A drop path, or an exit for training alone, is no part of the graph, which is that of
    evaluation. So in training the user's own forward runs while nothing in the block is pruned.
    """

    def __init__(
        self, block: nn.Module, own: Callable[..., Any] | None, switches: Sequence[Switch]
    ) -> None:
        """Set up for a rewritten block; `own` is its forward of before, None for its class's."""
        self._block, self._own, self._switches = block, own, switches
        self._rewritten: Callable[..., Any] = block.forward
        self.__signature__ = inspect.signature(block.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's forward, or the rewritten one."""
        if not self._block.training or any(s.choice != KEEP for s in self._switches):
            return self._rewritten(*args, **kwargs)
        if self._own is None:
            return type(self._block).forward(self._block, *args, **kwargs)
        return self._own(*args, **kwargs)
