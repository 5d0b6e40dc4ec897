"""Data: a `Source` of images, split by `hold_out`, served in `Batches`, scaled by `Preprocess`.

`open_source` reads a data set by name, `from_loaders` uses a user's own data loaders, and
`match_classes` maps the classes of either to the model's.
"""

from updp.data.batches import Batches
from updp.data.classes import match_classes
from updp.data.images import Images
from updp.data.preprocess import (
    NO_SIZE,
    Preprocess,
    model_input_size,
    preprocess_for,
    resize_for,
    states_colour,
)
from updp.data.readers import open_source, open_unlabelled
from updp.data.readers.loader_items import Loader
from updp.data.readers.loaders import from_loaders
from updp.data.resizing import ResizeCrop
from updp.data.source import Source, without_labels
from updp.data.split import hold_out
from updp.data.transforms import Augment

__all__ = [
    "NO_SIZE",
    "Augment",
    "Batches",
    "Images",
    "Loader",
    "Preprocess",
    "ResizeCrop",
    "Source",
    "from_loaders",
    "hold_out",
    "match_classes",
    "model_input_size",
    "open_source",
    "open_unlabelled",
    "preprocess_for",
    "resize_for",
    "states_colour",
    "without_labels",
]
