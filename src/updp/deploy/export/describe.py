"""preprocess.json: all that someone needs who has the file and an image, and not updp."""

from typing import Any

from updp.deploy.export.base import INPUT, OUTPUT
from updp.deploy.export.program import AXES
from updp.io.records import FORMAT
from updp.run.finished import Finished


def describe(run: Finished, *, prepared: bool = False) -> dict[str, Any]:
    """Plain JSON for the models of `run`; `prepared`: the user's own loader normalises."""
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


def why_fixed(dynamic: tuple[str, ...], shape: tuple[int, ...]) -> str:
    """What to say of axes that are not dynamic."""
    fixed = [name for name in AXES.values() if name not in dynamic]
    if not fixed:
        return ""
    size = "x".join(map(str, shape))
    return f"{' and '.join(fixed)} are those of {size}: the model, or the exporter, takes no other"
