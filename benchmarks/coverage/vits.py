"""Networks of vit-pytorch, in small: each module's classifier, by its arguments' names.

vit-pytorch is no dependency: install it beside.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.base import Network

# Values of arguments by name, in every network that takes them and has no default of its own.
_SIZES = {
    "image_size": 64, "patch_size": 8, "num_classes": 10, "dim": 64, "depth": 3, "heads": 4,
    "mlp_dim": 128, "channels": 3, "max_tokens_per_depth": (32, 24, 16), "cls_depth": 2,
    "sm_dim": 64, "lg_dim": 128, "freq_patch_size": 8, "num_residual_streams": 2, "ndim": 2,
    "input_shape": (64, 64), "seq_len": 64, "frames": 4, "frame_patch_size": 2,
    "image_patch_size": 16, "spatial_depth": 2, "temporal_depth": 2, "num_slots": 4, "dim_head": 16,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "cct": {"kind": "CCT", "img_size": 64, "embedding_dim": 64, "num_layers": 3, "num_heads": 4},
    "crossformer": {"global_window_size": (4, 2, 1, 1), "local_window_size": 2, "dim_head": None},
    "levit": {"dim": (64, 96, 128), "mlp_mult": 2, "image_size": 224, "depth": 2, "dim_head": None},
    "max_vit": {"depth": (1, 1, 2), "window_size": 4, "dim_conv_stem": 32},
    "max_vit_with_registers": {"depth": (1, 1, 2), "window_size": 4, "dim_conv_stem": 32},
    "mobile_vit": {"image_size": (64, 64), "dims": [96, 120, 144],
        "channels": [16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 384]},
    "nest": {"num_hierarchies": 3, "block_repeats": (2, 2, 2), "image_size": 64, "patch_size": 4},
    "pit": {"depth": (2, 2, 1)},
    "regionvit": {"window_size": 2, "depth": (1, 1, 2, 1), "dim": (32, 64, 96, 128)},
    "scalable_vit": {"image_size": 256, "heads": (2, 4, 8, 8), "depth": (1, 1, 2, 1),
        "reduction_factor": (8, 4, 2, 1), "window_size": (8, 4, None, None)},
    "sep_vit": {"dim": 32, "depth": (1, 2, 2, 1), "heads": (1, 2, 4, 8), "image_size": 224},
    "cvt": {"s3_depth": 3},
    "twins_svt": {"image_size": 224, "s3_depth": 2, "s4_depth": 2},
    "t2t": {"image_size": 64, "depth": 3, "heads": 4, "mlp_dim": 128},
    "cross_vit": {"sm_patch_size": 8, "lg_patch_size": 16,
        "sm_enc_mlp_dim": 128, "lg_enc_mlp_dim": 128, "sm_enc_heads": 4,
        "lg_enc_heads": 4},
    "look_vit": {"patch_size": 16, "highres_patch_size": 8, "image_size": 64},
    "looped_vit": {"image_size": 64, "patch_size": 8, "input_shape": None,
        "pre_loop_depth": 2, "post_loop_depth": 2, "num_looped_blocks": 1},
    "jet_vit": {"window_size": 4},
}  # fmt: skip
# No batch of images in, a trainer, or a module that is given its transformer.
_SKIPPED = ("na_vit", "dino", "es_vit", "lejepa", "efficient", "cct_3d")


def vit_names() -> list[str]:
    """Every module of vit-pytorch with one classifier that takes images."""
    import vit_pytorch

    names = [info.name for info in pkgutil.iter_modules(vit_pytorch.__path__)]
    return [n for n in names if not n.startswith(_SKIPPED) and _class_of(n) is not None]


def _class_of(name: str) -> type[nn.Module] | None:
    """The last class of a module of vit-pytorch that takes a number of classes and makes itself."""
    try:
        module = importlib.import_module(f"vit_pytorch.{name}")
    except ImportError:
        return None
    found = None
    for kind in vars(module).values():
        own = inspect.isclass(kind) and kind.__module__ == module.__name__
        given = {*inspect.signature(kind).parameters} if own else set()
        if "num_classes" in given and not {"net", "vit"} & given:
            found = kind
    return found


def vit(name: str) -> Network:
    own = _OWN.get(name, {})
    kind = _class_of(name)
    if "kind" in own:
        kind = getattr(importlib.import_module(f"vit_pytorch.{name}"), own["kind"])
    assert kind is not None
    parameters = inspect.signature(kind).parameters
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    given = {k: v for k, v in own.items() if k in parameters or (takes_any and k != "kind")}
    for key, parameter in parameters.items():
        if key in _SIZES and (parameter.default is parameter.empty or key == "dim_head"):
            given.setdefault(key, _SIZES[key])
    model = kind(**{k: v for k, v in given.items() if v is not None})
    size = own.get("image_size", 64)
    side = size[0] if isinstance(size, tuple) else size
    shape: tuple[int, ...] = (2, 3, side, side)
    if "seq_len" in given:
        shape = (2, 3, 64)
    elif "frames" in given:
        shape = (2, 3, 4, side, side)
    return Network(model, torch.randn(shape))
