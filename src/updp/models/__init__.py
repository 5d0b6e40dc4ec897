"""Models by name, modules from the user, and teachers of stage 3."""

from updp.models.given import check_finite, own_copy, weights_of
from updp.models.named import (
    hash_frozen,
    hash_state,
    is_code,
    is_same_code,
    load_model,
    num_outputs,
)
from updp.models.weights import read_shapes

__all__ = [
    "check_finite",
    "hash_frozen",
    "hash_state",
    "is_code",
    "is_same_code",
    "load_model",
    "num_outputs",
    "own_copy",
    "read_shapes",
    "weights_of",
]
