"""State: tensors that a module keeps from one call for the next."""

import torch
from torch import Tensor, fx, nn

from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.nested import named_tensors, same
from updp.blocks.tracing.calls import Arguments, cloned
from updp.blocks.tracing.trace import TABLES, restored
from updp.io.seeds import random_state


def why_stateful(module: nn.Module, call: Arguments) -> str:
    """Say what a module keeps that is another after each of two equal calls; empty if nothing.

    What it only writes down, such as its last attention, is the same.
    """
    try:
        with restored(*module.modules()), torch.no_grad():
            first, second = _kept_after(module, call), _kept_after(module, call)
    except UserCodeError:
        return ""
    changed = [name for name in second if not same(first.get(name), second[name])]
    return f"it keeps `{changed[0]}` from one call to the next" if changed else ""


def _kept_after(module: nn.Module, call: Arguments) -> dict[str, Tensor]:
    """Copies of all tensors but parameters that are in a module after a call."""
    args, kwargs = fx.node.map_aggregate((call.args, call.kwargs), cloned)
    with random_state(0):  # a draw is no state
        call_user_code(module.forward, *args, **kwargs)
    found: dict[str, Tensor] = {}
    for path, part in module.named_modules():
        own = {key: value for key, value in vars(part).items() if key not in TABLES}
        for name, tensor in named_tensors(own | part._buffers):
            found[f"{path}.{name}".lstrip(".")] = tensor.clone()
    return found
