"""preprocess.json: how to prepare an image for an exported file without updp."""

from typing import Any

from updp.deploy.export.base import INPUT, OUTPUT
from updp.io.records import FORMAT
from updp.run.finished import Finished


def describe(run: Finished) -> dict[str, Any]:
    """Preprocessing and class names of `run` as plain JSON.

    Where the user's own loaders resize or normalise, neither is known here and both are null.
    """
    channels, height, width = run.shape
    preprocess, resize, prepared = run.feed.preprocess, run.feed.resize, run.feed.normalised
    prepared = prepared or preprocess is None
    return {
        "format": FORMAT,
        "input": {
            "name": INPUT,
            "layout": "NCHW",
            "dtype": "float32",
            "size": [channels, height, width],
            "mode": {1: "L", 3: "RGB"}.get(channels),
        },
        # The fields of `timm.data.create_transform`.
        "resize": None
        if resize is None
        else {
            "height": height,
            "width": width,
            "crop_pct": resize.crop_pct,
            "crop_mode": resize.crop_mode,
            "interpolation": resize.interpolation,  # antialiased
            "fill": list(resize.fill),  # of crop_mode "border", in [0, 1]
        },
        "range": None if prepared else [0, 1],  # of pixels before mean and std
        "mean": None if prepared else list(preprocess.mean if preprocess else ()),
        "std": None if prepared else list(preprocess.std if preprocess else ()),
        "output": {"name": OUTPUT, "layout": "NC", "dtype": "float32"},
        "classes": list(run.classes),
    }
