"""preprocess.json: how to prepare an image for an exported file without updp."""

from typing import Any

from updp.deploy.export.base import INPUT, OUTPUT
from updp.io.records import FORMAT
from updp.run.finished import Finished


def describe(run: Finished, *, prepared: bool = False) -> dict[str, Any]:
    """Preprocessing and class names of `run` as plain JSON.

    With `prepared`, the user's own loader resizes and normalises, so neither is known here.
    """
    channels, height, width = run.shape
    preprocess = run.feed.preprocess
    return {
        "format": FORMAT,
        "input": {
            "name": INPUT,
            "layout": "NCHW",
            "dtype": "float32",
            "size": [channels, height, width],
            "mode": {1: "L", 3: "RGB"}.get(channels),
        },
        # Shorter side scaled to fit, then a centre crop: ImageOps.fit of Pillow.
        "resize": None
        if prepared
        else {
            "height": height,
            "width": width,
            "method": "fit shorter side, crop centre",
            "filter": "bilinear, antialiased",
        },
        "range": None if prepared else [0, 1],  # of pixels before mean and std
        "mean": None if prepared else list(preprocess.mean),
        "std": None if prepared else list(preprocess.std),
        "output": {"name": OUTPUT, "layout": "NC", "dtype": "float32"},
        "classes": list(run.classes),
    }
