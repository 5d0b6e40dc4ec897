"""The form of a module for deployment, as a function: by runtime, layout and precision."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from updp.blocks.copying import copy_module
from updp.blocks.modules import cast, to_eval
from updp.blocks.nested import call
from updp.errors import UserError, root_reason
from updp.io.quiet import quiet, silent
from updp.measure import onnxruntime, openvino
from updp.recipe import MeasureSettings

Inputs = tuple[Any, ...]
Run = Callable[[], object]


def runner(module: nn.Module, inputs: Inputs, settings: MeasureSettings) -> Run:
    """Prepare a copy of `module` for inference and run it once, so that nothing is left to compile.

    Args:
        module: in any mode; it is not changed.
        inputs: its arguments: tensors such as images (N, C, H, W), and other values.
        settings: runtime, layout and precision.

    Returns:
        A function that runs the copy on copies of `inputs` without gradients. It returns the
        module's output; with ONNX Runtime a list of `OrtValue`s, with OpenVINO a list of arrays.

    Raises:
        UserError: the runtime is not installed, or cannot run this module with this layout and
            precision.
    """
    check_runtime(settings)
    builders: dict[str, Callable[[nn.Module, Inputs], Run]] = {
        "eager": _eager,
        "compile": _compiled,
        "onnxruntime": onnxruntime.session,
        "openvino": partial(openvino.request, precision=settings.precision),
    }
    # Only the ONNX exporter, which both of these use, prints.
    hushed = silent if settings.runtime in ("onnxruntime", "openvino") else quiet
    with hushed():
        try:
            run = builders[settings.runtime](*deployed(module, inputs, settings))
            run()
        except UserError:
            raise
        except Exception as error:  # from the user's code, a compiler or an exporter
            changed, name = _describe(settings), type(module).__name__
            raise UserError(f"{changed}: {name} does not run so ({root_reason(error)})") from error
    return run


def check_runtime(settings: MeasureSettings) -> None:
    """Raise UserError for a runtime that is missing or does not support the layout or precision."""
    if settings.runtime == "onnxruntime":
        onnxruntime.check_installed()
    elif settings.runtime == "openvino":
        openvino.check(settings.precision)
    else:
        return
    if settings.runtime == "onnxruntime" and settings.precision == "bfloat16":
        raise UserError(
            "measure.runtime=onnxruntime has hardly an operator for measure.precision=bfloat16: "
            "take float16 or float32"
        )
    if settings.layout == "channels_last":
        raise UserError(
            f"measure.runtime={settings.runtime} lays tensors out by itself: "
            "measure.layout=channels_last is not for it"
        )


def runtime_version(settings: MeasureSettings) -> str:
    """Name and version of the runtime, such as `torch 2.11.0` or `onnxruntime 1.22.0`.

    Raises UserError if it is missing.
    """
    check_runtime(settings)
    name = settings.runtime if settings.runtime in ("onnxruntime", "openvino") else "torch"
    return f"{name} {version(name)}"


def deployed(
    module: nn.Module, inputs: Inputs, settings: MeasureSettings
) -> tuple[nn.Module, Inputs]:
    """Copies of module and inputs, in evaluation mode and in the runtime's dtype and layout."""
    # OpenVINO gets a float32 model and casts it itself.
    dtype = torch.float32 if settings.runtime == "openvino" else getattr(torch, settings.precision)
    channels_last = settings.layout == "channels_last"

    def prepare(x: Tensor) -> Tensor:
        x = x.detach().clone()  # modules may change it in place
        if x.is_floating_point():
            x = x.to(dtype)
        if x.ndim == 4 and channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    module = to_eval(cast(copy_module(module), dtype))
    if channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module, tree_map_only(Tensor, prepare, inputs)


def _eager(module: Callable[..., object], inputs: Inputs) -> Run:
    def forward() -> object:
        return call(module, *inputs)

    run: Run = torch.inference_mode()(forward)
    try:
        run()
    except RuntimeError:
        # The forward may compute gradients, as force fields do, which inference mode rules out.
        # Other modules are timed in inference mode, because it is a bit faster.
        run = torch.no_grad()(forward)
        run()
    return run


def _compiled(module: nn.Module, inputs: Inputs) -> Run:
    def forward(*args: Any, **kwargs: Any) -> object:
        return module(*args, **kwargs)

    # Dynamo counts recompilations per code object and gives up after eight: if all modules shared
    # this one, the ninth would silently run eagerly. `isolate_recompiles` does the same, but
    # PyTorch 2.4 lacks it (https://github.com/pytorch/pytorch/pull/178351).
    forward.__code__ = forward.__code__.replace()
    return _eager(torch.compile(forward, dynamic=False), inputs)


def _describe(settings: MeasureSettings) -> str:
    """The fields that differ from the default, as the user wrote them; all, if none does."""
    fields = {name: getattr(settings, name) for name in ("runtime", "layout", "precision")}
    defaults = MeasureSettings()
    changed = {n: v for n, v in fields.items() if v != getattr(defaults, n)} or fields
    return ", ".join(f"measure.{name}={value}" for name, value in changed.items())
