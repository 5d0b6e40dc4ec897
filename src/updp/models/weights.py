"""Load weights from safetensors files into a module, strictly, allowing for wrappers' names."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from updp.errors import UserError, reason
from updp.models.given import check_finite, weights_of

T = TypeVar("T")

_NAMED_AT_MOST = 5
# Prefixes that wrappers put before names: DataParallel, EMA, torch.compile, Lightning, trainers.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "state_dict.")
_COUNTER = "num_batches_tracked"  # of BatchNorm; no computation depends on it
_ASIDE = frozenset({"n_averaged"})  # an extra value of torch's AveragedModel


def load_weights(model: nn.Module, path: Path, spec: str) -> None:
    """Load a safetensors file into `model`; every key must fit in name, shape and kind.

    Prefixes of wrappers, such as `module.`, are removed if all keys have them. BatchNorm's
    `num_batches_tracked` may be missing, and so may a tensor that shares its memory with another.

    Args:
        model: changed in place.
        path: the file.
        spec: the model's name, for errors.

    Raises:
        UserError: the file cannot be read or does not fit, or a value is not finite.
    """
    if not path.is_file():
        if path.is_dir():
            raise UserError(f"weights '{path}' are a folder: give the safetensors file in it")
        raise UserError(f"weights '{path}' are not there: check the path")
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError) as error:
        if _is_pickle(path):
            raise UserError(
                f"weights '{path}' are a pickle, which may hold code and is not opened: in Python, "
                f"safetensors.torch.save_file(torch.load({str(path)!r}, map_location='cpu', "
                f"weights_only=True), {str(path.with_suffix('.safetensors'))!r}), of a training "
                "checkpoint its part 'state_dict' or 'model'"
            ) from error
        raise UserError(
            f"weights '{path}' are not a readable safetensors file ({reason(error)}): "
            "save them with safetensors.torch.save_file"
        ) from error
    wanted = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    loaded = _renamed(loaded, wanted)
    given = {value.data_ptr() for key, value in wanted.items() if key in loaded}
    problems = [
        f"missing {key}"
        for key, value in wanted.items()
        if key not in loaded and not key.endswith(_COUNTER) and value.data_ptr() not in given
    ]
    problems += [f"unexpected {key}" for key in loaded if key not in wanted]
    problems += [
        f"wrong shape of {key}: {tuple(loaded[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in loaded and loaded[key].shape != value.shape
    ]
    if problems:
        more = len(problems) - _NAMED_AT_MOST
        listed = "; ".join(problems[:_NAMED_AT_MOST]) + (f"; ... and {more} more" * (more > 0))
        raise UserError(f"weights '{path}' do not fit '{spec}': {listed}")
    for key, value in loaded.items():
        if wanted[key].is_floating_point() and not value.is_floating_point():
            kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (value, wanted[key])]
            raise UserError(
                f"weights '{path}' have {key} in {kinds[0]}, and '{spec}' in {kinds[1]}: give "
                "weights in floating point, not quantised ones"
            )
    model.load_state_dict(loaded, strict=False)
    check_finite(weights_of(model), f"weights '{path}'")


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like those of `torch.save`: as a zip archive, or a bare pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", *(bytes([0x80, version]) for version in range(2, 6)))


def read_shapes(path: Path, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file, by the model's names.

    Empty if the file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return {}
    return _renamed(shapes, model.state_dict())


def _renamed(found: Mapping[str, T], wanted: Collection[str]) -> dict[str, T]:
    """The file's tensors, renamed such that most names match the model's."""
    best = dict(found)
    names = {key: key for key in found}
    known = len(found.keys() & set(wanted))
    while True:
        kept = {key: name for key, name in names.items() if name not in _ASIDE}
        prefix = next((p for p in _WRAPPERS if all(n.startswith(p) for n in kept.values())), None)
        if prefix is None or not kept:
            break
        names = {key: name.removeprefix(prefix) for key, name in kept.items()}
        if (count := len(set(names.values()) & set(wanted))) > known:
            best, known = {name: found[key] for key, name in names.items()}, count
    # The other way round, if the model is the wrapped one, as with transformers' models.
    for prefix in _WRAPPERS:
        longer = {f"{prefix}{key}": value for key, value in found.items()}
        if (count := len(longer.keys() & set(wanted))) > known:
            best, known = longer, count
    return best
