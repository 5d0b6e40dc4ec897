"""A site in the supernet: the baseline's path or one of its candidates."""

from typing import Any

import torch
from torch import Tensor, nn

from updp.candidates import Form

KEEP = "keep"
GATES = ("blend", "anneal")


class Switch(nn.Module):
    """Holds a site's baseline path and its candidates' forms; `choice` says which one runs.

    `lam` is lambda, from the baseline block (0) to the pruned block (1). Two gates lead
    there: `blend` mixes the outputs of both, `anneal` turns the block's own activations and norms
    into the pruned block's (UPDP, *Progressive subnet training*).
    """

    def __init__(self, keep: nn.Module, forms: dict[str, Form]) -> None:
        super().__init__()
        self.keep = keep
        self.labels = tuple(forms)
        self.forms = nn.ModuleList(forms.values())
        self.choice = KEEP
        self.gate = "blend"
        self.lam = 1.0

    def form(self, label: str) -> Form:
        """The form of the candidate called `label`."""
        form = self.forms[self.labels.index(label)]
        assert isinstance(form, Form)
        return form

    def forward(self, x: Tensor, *extras: Any) -> Tensor:
        """The site's output under the present choice."""
        if self.choice == KEEP:
            return self.keep(x, *extras)
        form = self.form(self.choice)
        if self.lam == 1:
            return form(x, *extras)
        if self.gate == "anneal":
            return form(x, *extras, lam=self.lam)
        # The form first: the baseline's path may work in place on x.
        pruned = form(x, *extras)
        return torch.lerp(self.keep(x, *extras), pruned, self.lam)
