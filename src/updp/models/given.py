"""Prepare a user's module for all stages: a plain eager module in float32, without wrappers."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError
from updp.errors import UserError
from updp.models.graph_modules import without_graphs

_log = logging.getLogger(__name__)

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_QUANTIZED = ("torch.ao.nn.", "bitsandbytes.", "torchao.")  # where such modules are defined
_IN_FLOATING_POINT = ("FloatFunctional", "FXFloatFunctional")  # there, too: an ordinary add or cat


def own_copy(given: object, name: str = "the model") -> nn.Module:
    """A copy of a user's module that all stages can work on; see `usable`.

    Args:
        given: the object that the user passed as a module.
        name: its name in errors and warnings.

    Raises:
        UserError: it is not an eager module with floating-point weights, or cannot be copied.
    """
    module = _unwrapped(given, name)
    try:
        copied = copy_module(module)
    except UserCodeError as error:
        raise UserError(f"{name} cannot be copied: {error}") from error
    return usable(copied, name)


def usable(given: object, name: str) -> nn.Module:
    """The module inside of wrappers, eager and in float32; it is changed in place.

    What `torch.compile`, `DataParallel`, `DistributedDataParallel` and `AveragedModel` wrap is
    taken out. Masks of `torch.nn.utils.prune` are multiplied into the weights for good; expanded
    buffers get a place for each value; an ordinary module stands for one that torch.fx made. A
    cache of keys and values is off in transformers' configuration, and so are nested tensors in
    torch's own encoder, as in training: what it makes of padding is then not zero. Weights of
    another floating-point type become float32, and a warning says so.

    Raises:
        UserError: it is not an eager module with floating-point weights.
    """
    module = _unwrapped(given, name)
    for part in [*module.modules()]:
        if part._compiled_call_impl is not None:  # left by `Module.compile`
            part._compiled_call_impl = None
        _keep_no_cache(getattr(part, "config", None), {})
        if isinstance(part, nn.TransformerEncoder) and getattr(part, "use_nested_tensor", False):
            # In evaluation its layers would get nested tensors, which cannot be traced.
            part.use_nested_tensor = False
            _log.info("%s: nn.TransformerEncoder makes no nested tensors of padded ones", name)
        for key, child in part.named_children():
            if child is not (inside := _inside(child)):
                setattr(part, key, inside)
        for key, buffer in [*part.named_buffers(recurse=False)]:
            if buffer.layout is torch.strided and 0 in buffer.stride():
                part._buffers[key] = buffer.contiguous()  # expanded ones load no weights
        for key in [key.removesuffix("_orig") for key, _ in part.named_parameters(recurse=False)]:
            if hasattr(part, f"{key}_orig") and hasattr(part, f"{key}_mask"):
                prune.remove(part, key)  # type: ignore[no-untyped-call]
    module = without_graphs(module)
    types = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if types:
        listed = ", ".join(sorted(str(each).removeprefix("torch.") for each in types))
        _log.warning(
            "%s has weights in %s: updp works in float32, as does its result", name, listed
        )
        module.float()
    return module


def _keep_no_cache(config: Any, seen: dict[int, Any]) -> None:
    """Turn the cache off in a configuration, and in configurations of transformers inside it.

    Decoders would pass on keys and values of earlier tokens, and each run of a block would append
    to them. `generate` turns the cache on by itself. `seen` has the configurations already visited.
    """
    if id(config) in seen:
        return
    seen[id(config)] = config
    if getattr(config, "use_cache", None) is True:
        config.use_cache = False
    for part in getattr(config, "__dict__", {}).values():  # for example `text_config`
        if hasattr(part, "model_type"):
            _keep_no_cache(part, seen)


def check_finite(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Raise UserError if a weight is infinite or not a number; names the first such value.

    A mask in a buffer may have infinities; `weights_of` selects the buffers to check.

    Args:
        tensors: tensors of a module or a file, each with its key.
        name: the owner of the tensors, for the message.
    """
    for key, value in tensors:
        if not value.is_floating_point() or not value.numel():
            continue
        wrong = ~value.isfinite()
        if not wrong.any():
            continue
        place = tuple(wrong.nonzero()[0].tolist())
        raise UserError(
            f"{name}: {key} is {value[place].item()} at {list(place)} ({int(wrong.sum())} of "
            f"{value.numel()} values are not finite): load weights from before training diverged"
        )


def weights_of(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The tensors of a module that must be finite: parameters, running statistics, NaN buffers."""
    yield from module.named_parameters()
    for key, value in module.named_buffers():
        if key.rpartition(".")[2].startswith("running_") or value.isnan().any():
            yield key, value


def _unwrapped(given: object, name: str) -> nn.Module:
    """The module inside of wrappers. Raises UserError: updp cannot work on it."""
    given = _inside(given)
    origin, kind = type(given).__module__, type(given).__name__
    parts = given.named_modules() if isinstance(given, nn.Module) else ()
    scripted = next((key for key, p in parts if isinstance(p, torch.jit.ScriptModule)), None)
    if scripted is not None:
        layer = f"{name}'s layer {scripted}" if scripted else name
        raise UserError(  # torch lets no hook see what it is given
            f"{layer} is a TorchScript module (scripted or traced), whose layers are fixed: "
            "pass the nn.Module that it was made from"
        )
    exported = isinstance(given, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in given.graph.nodes
    )
    if exported or origin.startswith("torch.export"):
        raise UserError(
            f"{name} is a program of torch.export, which has no layers any more: "
            "pass the nn.Module that it was made from"
        )
    if not isinstance(given, nn.Module):
        raise UserError(f"{name} is a {kind}: pass an nn.Module, or a name such as timm/NAME")
    for key, value in [*given.named_parameters(), *given.named_buffers()]:
        if is_lazy(value):
            raise UserError(
                f"{name} has no {key} yet, as its layer is lazy: run it once on an input before"
            )
        if value.is_meta:
            raise UserError(
                f"{name}'s {key} is on the meta device and has no values: "
                "call model.to_empty(device='cpu') and load its weights before"
            )
    for key, part in given.named_modules():
        integers = [t for t in part.parameters(recurse=False) if not t.is_floating_point()]
        defined, kind = type(part).__module__, type(part).__name__
        of_integers = defined.startswith(_QUANTIZED) and kind not in _IN_FLOATING_POINT
        if of_integers or any(not t.is_complex() for t in integers):
            raise UserError(
                f"{name}'s layer {key} ({kind}) is quantised: pass the model "
                "in floating point, and quantise the result"
            )
    return given


def _inside(module: object) -> object:
    """The module inside a wrapper, else the module itself."""
    while isinstance(module, nn.Module):
        # This attribute identifies torch.compile's wrapper without importing the compiler.
        inside = module.module if isinstance(module, _PARALLEL) else None
        inside = getattr(module, "_orig_mod", inside)
        if not isinstance(inside, nn.Module):
            break
        module = inside
    return module
