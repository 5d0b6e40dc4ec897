"""Find weights that a forward uses in several places: a fit of one place must not change them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks.modules import UserCodeError, call_user_code, hooks
from updp.blocks.nested import Samples, call, take
from updp.supernet.supernet import Supernet
from updp.supernet.switch import Switch


def unchangeable(net: Supernet, images: Samples, places: Mapping[str, nn.Module]) -> set[str]:
    """Sites, and some of `places`, whose weights must stay unless they are pruned.

    See `shared_sites` and `read_before`.
    """
    return shared_sites(net) | read_before(net, images, places)


def shared_sites(net: Supernet) -> set[str]:
    """Sites that share weights with another site or with an operator outside of all sites."""
    users: Counter[int] = Counter()
    inside = {id(m) for switch in net.all_switches.values() for m in switch.modules()}
    for switch in net.all_switches.values():
        users.update({id(p) for p in switch.keep.parameters()})
    for module in net.model.modules():
        is_list = isinstance(module, nn.ParameterList | nn.ParameterDict)  # counted at its reader
        if id(module) not in inside and not is_list and not any(module.children()):
            users.update(id(p) for p in module.parameters())
    return {
        name
        for name, switch in net.all_switches.items()
        if any(users[id(p)] > 1 for p in switch.keep.parameters())
    }


def read_before(net: Supernet, images: Samples, places: Mapping[str, nn.Module]) -> set[str]:
    """Places (sites or operators) whose own input depends on their own weights.

    A fit computes its targets and inputs with the old weights. If a module before the place reads
    these weights, too (one called outside of its site, say), those inputs would change. Found by
    the gradients of each input; for a model without gradients the result is empty.
    """
    given: dict[nn.Module, Tensor] = {}

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].requires_grad:
            with torch.inference_mode(False), torch.enable_grad():  # it may be called without
                x = args[0].abs() if args[0].is_complex() else args[0]  # gradients are of reals
                given.setdefault(module, x.sum())

    frozen = [p for p in net.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_()
        handles = (m.register_forward_pre_hook(hook) for m in places.values())
        with torch.enable_grad(), hooks(handles):
            call_user_code(call, net, take(images, torch.arange(1)))
        return {n for n, m in places.items() if m in given and _depends(given[m], m)}
    except UserCodeError:
        return set()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _depends(x: Tensor, place: nn.Module) -> bool:
    """Whether the tensor `x` was computed with weights of `place`."""
    own = [*(place.keep if isinstance(place, Switch) else place).parameters()]
    if not own:
        return False
    gradients = torch.autograd.grad(x, own, retain_graph=True, allow_unused=True)
    return any(gradient is not None for gradient in gradients)
