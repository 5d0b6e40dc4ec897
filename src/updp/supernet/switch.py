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

    `lam` is lambda, from the baseline block (0) to the pruned block (1). There are two gates:
    `blend` mixes the outputs of both, `anneal` turns the block's own activations and norms into the
    pruned block's (UPDP, *Progressive subnet training*). With `checkpointing` activations inside
    the site are not stored; the backward recomputes them.
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
        """The site's output under the current choice."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self._run(x, *extras)
        output: Tensor = checkpoint(
            self._run_on_copy, x, *extras, use_reentrant=False, context_fn=self._contexts
        )
        return output

    def _run_on_copy(self, x: Tensor, *extras: Any) -> Tensor:
        # The path may change x in place, but the second run must start from the same x.
        return self._run(x.clone(), *extras)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of the first and the second run; the second must not update statistics again."""
        return nullcontext(), _statistics_kept(self)

    def _run(self, x: Tensor, *extras: Any) -> Tensor:
        output: Tensor
        if self.choice == KEEP:
            output = self.keep(x, *extras)
        elif self.gate == "anneal" and self.lam != 1:
            output = self.form(self.choice)(x, *extras, lam=self.lam)
        else:
            # The form runs first, because the baseline's path may change x in place.
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
    """Forward, in the supernet, of a block whose code differs in training mode.

    The traced graph is that of evaluation, without a drop path or a training-only exit. So in
    training mode the user's own forward runs, as long as nothing in the block is pruned.
    """

    def __init__(
        self, block: nn.Module, own: Callable[..., Any] | None, switches: Sequence[Switch]
    ) -> None:
        """Set up for a rewritten block; `own` is the forward it had set; None for its class's."""
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
