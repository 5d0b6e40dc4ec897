"""Data: a `Source` of images, cut by `hold_out`, served in `Batches`, made inputs by `Preprocess`.

`open_source` reads 'digits', a folder of class folders or a folder of Parquet files;
`from_loaders` takes a user's own data loaders.
"""

from updp.engine.data.augment import Augment
from updp.engine.data.batches import Batches
from updp.engine.data.images import Images
from updp.engine.data.loaders import from_loaders
from updp.engine.data.preprocess import Preprocess, model_input_size, preprocess_for
from updp.engine.data.source import Source, open_source
from updp.engine.data.split import hold_out

__all__ = [
    "Augment",
    "Batches",
    "Images",
    "Preprocess",
    "Source",
    "from_loaders",
    "hold_out",
    "model_input_size",
    "open_source",
    "preprocess_for",
]
