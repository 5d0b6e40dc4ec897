"""A site in the supernet: the baseline's path or one of its candidates."""

from typing import Any

import torch
from torch import Tensor, nn

from updp.candidates import Form

KEEP = "keep"
GATES = ("blend", "anneal")


class Switch(nn.Module):
    """A site's baseline path and its candidates' forms; `choice` says which one runs.

    `lam` is lambda, from the baseline block (0) to the pruned block (1). Of the two gates `blend`
    mixes the outputs of both, and `anneal` turns the block's own activations and norms into the
    pruned block's (UPDP, *Progressive subnet training*).
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
        output: Tensor
        if self.choice == KEEP:
            output = self.keep(x, *extras)
        elif self.gate == "anneal" and self.lam != 1:
            output = self.form(self.choice)(x, *extras, lam=self.lam)
        else:
            # The form first: the baseline's path may work in place on x.
            output = self.form(self.choice)(x, *extras)
            if self.lam != 1:
                output = torch.lerp(self.keep(x, *extras), output, self.lam)
        return output
