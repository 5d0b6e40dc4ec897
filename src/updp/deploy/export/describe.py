"""preprocess.json: how to prepare an image for an exported file without updp."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from updp.blocks.nested import tensors_in
from updp.deploy.export.base import OUTPUT
from updp.io.records import FORMAT
from updp.run.finished import Finished
from updp.run.plain import INPUT
from updp.tasks import Classification


def describe(run: Finished, names: Sequence[str] = (INPUT,)) -> dict[str, Any]:
    """Preprocessing and class names of `run` as plain JSON; `names` are those of the inputs.

    If the user's own loaders resize or normalise, that is not known here and both are null.
    """
    first = run.first_inputs()
    sizes = [tuple(x.shape[1:]) for x in tensors_in(first)]
    sizes = [run.shape] if isinstance(first, Tensor) else sizes
    parts = zip(names, sizes, tensors_in(first), strict=True)
    inputs = [_describe_input(name, size, x.dtype) for name, size, x in parts]
    preprocess, resize, prepared = run.feed.preprocess, run.feed.resize, run.feed.normalised
    prepared = prepared or preprocess is None
    layout = "NC" if isinstance(run.feed.task, Classification) else None
    return {
        "format": FORMAT,
        "input": inputs[0],
        "inputs": inputs,
        # Fields as in `timm.data.create_transform`.
        "resize": None
        if resize is None
        else {
            "height": run.shape[1],
            "width": run.shape[2],
            "crop_pct": resize.crop_pct,
            "crop_mode": resize.crop_mode,
            "interpolation": resize.interpolation,  # antialiased
            "fill": list(resize.fill),  # colour for crop_mode "border", in [0, 1]
        },
        "range": None if prepared else [0, 1],  # range of pixels before mean and std
        "mean": None if prepared else list(preprocess.mean if preprocess else ()),
        "std": None if prepared else list(preprocess.std if preprocess else ()),
        "output": {"name": OUTPUT, "layout": layout, "dtype": "float32"},
        "classes": list(run.classes),
    }


def _describe_input(name: str, size: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Describe one input, from the size of a sample; the mode is Pillow's."""
    is_image = len(size) == 3 and dtype.is_floating_point
    return {
        "name": name,
        "layout": "NCHW" if is_image else None,
        "dtype": str(dtype).removeprefix("torch."),
        "size": list(size),
        "mode": {1: "L", 3: "RGB"}.get(size[0]) if is_image else None,
    }
