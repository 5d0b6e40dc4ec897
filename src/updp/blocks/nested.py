"""Nested values: inputs and outputs of models other than single tensors.

The first axis of a tensor counts the samples. Tuples, dictionaries and dataclasses hold such
tensors; a list has one entry per sample, such as images of several sizes for a detector.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import GetAttrKey, register_pytree_node


def map_leaves(kind: type | tuple[type, ...], function: Callable[[Any], Any], value: Any) -> Any:
    """Apply `function` to each `kind` in tuples, lists, mappings and dataclasses, in a copy.

    Mappings and dataclasses, such as transformers' `ModelOutput`, keep their class. Other objects
    are returned unchanged.
    """
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, ModelInputs):
        return ModelInputs(*map_leaves(kind, function, (value.args, value.kwargs)))
    if isinstance(value, tuple | list):
        parts = [map_leaves(kind, function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        if type(value) is dict:
            return {key: map_leaves(kind, function, part) for key, part in value.items()}
        mapped: Any = copy.copy(value)
        for key, part in value.items():
            mapped[key] = map_leaves(kind, function, part)
        return mapped
    if _is_record(value):
        parts = [map_leaves(kind, function, part) for part in _parts(value).values()]
        return _rebuilt(value, dict(zip(_parts(value), parts, strict=True)))
    return value


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply `function` to each tensor in a nested value, see `map_leaves`."""
    return map_leaves(Tensor, function, value)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a nested value, in order."""
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found


def is_float_tensor(value: Any) -> bool:
    """Whether `value` is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def same(one: Any, other: Any) -> bool:
    """Whether the tensors in two nested values are equal bit by bit."""
    pairs = tensors_in(one), tensors_in(other)
    return len(pairs[0]) == len(pairs[1]) and all(map(torch.equal, *pairs))


def count(value: Any) -> int:
    """The number of samples. Raises ValueError if there is no tensor."""
    if isinstance(value, Tensor | list):
        return len(value)
    if isinstance(value, ModelInputs):
        return len(value)
    for part in _parts(value).values():
        try:
            return count(part)
        except ValueError:
            continue
    raise ValueError(f"{type(value).__name__} holds no samples")


def take(value: Any, index: Any) -> Any:
    """Select samples; `index` is a slice, or a tensor of numbers or of booleans."""
    if isinstance(value, list):
        if isinstance(index, Tensor):
            numbers = index.nonzero()[:, 0] if index.dtype == torch.bool else index
            return [value[number] for number in numbers.tolist()]
        return value[index]
    if isinstance(value, Tensor):
        return value[index.to(value.device) if isinstance(index, Tensor) else index]
    if isinstance(value, ModelInputs):
        return value[index]
    return _rebuilt(value, {key: take(part, index) for key, part in _parts(value).items()})


def join(values: Sequence[Any]) -> Any:
    """Concatenate the samples of several values with the same structure."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, list):
        return [part for value in values for part in value]
    if isinstance(first, ModelInputs):
        joined = join([(value.args, value.kwargs) for value in values])
        return ModelInputs(*joined)
    parts = [_parts(value) for value in values]
    return _rebuilt(first, {key: join([part[key] for part in parts]) for key in parts[0]})


def split(value: Any, size: int) -> list[Any]:
    """Split into parts of `size` samples, the last one perhaps shorter, like `torch.split`."""
    return [take(value, slice(at, at + size)) for at in range(0, count(value), size)]


def is_plain(value: Any) -> bool:
    """Whether a nested value contains only tensors and constants, so that its content is known."""
    if value is None or isinstance(value, Tensor | bool | int | float | str | torch.dtype):
        return True
    if isinstance(value, ModelInputs):
        return is_plain((value.args, value.kwargs))
    known = isinstance(value, tuple | list | Mapping) or _is_record(value)
    parts = value if isinstance(value, list) else _parts(value).values()
    return known and all(map(is_plain, parts))


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _parts(value: Any) -> dict[Any, Any]:
    """Parts of a tuple, mapping or dataclass by key; empty for anything else."""
    if isinstance(value, tuple):
        return dict(enumerate(value))
    if isinstance(value, Mapping):
        return dict(value)
    if _is_record(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}


def _rebuilt(value: Any, parts: Mapping[Any, Any]) -> Any:
    """A copy of the value with other parts; the value itself if it has no parts."""
    if isinstance(value, tuple):
        return type(value)(*parts.values()) if hasattr(value, "_fields") else tuple(parts.values())
    if isinstance(value, Mapping):
        return dict(parts)
    if not parts:
        return value
    rebuilt = copy.copy(value)
    for key, part in parts.items():
        object.__setattr__(rebuilt, key, part)
    return rebuilt


class ModelInputs:
    """A batch of inputs beyond one tensor; it can be indexed by sample like a tensor.

    >>> batch = ModelInputs((), {"input_ids": torch.zeros(8, 5), "mask": torch.ones(8, 5)})
    >>> len(batch), batch[:2].kwargs["mask"].shape
    (8, torch.Size([2, 5]))
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        self.args, self.kwargs = args, kwargs or {}

    def __len__(self) -> int:
        return count((self.args, self.kwargs))

    def __getitem__(self, index: Any) -> ModelInputs:
        return ModelInputs(*take((self.args, self.kwargs), index))

    def clone(self) -> ModelInputs:
        """A copy with each tensor cloned."""
        cloned: ModelInputs = map_tensors(torch.clone, self)
        return cloned

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        """`Tensor.to` for each tensor; only floating-point tensors change their type."""
        is_type = any(isinstance(arg, torch.dtype) for arg in (*args, *kwargs.values()))

        def moved(x: Tensor) -> Tensor:
            if is_type and not x.is_floating_point():
                return x
            # A memory layout applies to maps (N, C, H, W) only.
            return x if "memory_format" in kwargs and x.ndim != 4 else x.to(*args, **kwargs)

        moved_inputs: ModelInputs = map_tensors(moved, self)
        return moved_inputs


Samples = Tensor | ModelInputs  # a batch of inputs: images (N, C, H, W), or others


register_pytree_node(
    ModelInputs,
    lambda x: ([x.args, x.kwargs], None),
    lambda parts, _: ModelInputs(*parts),
    serialized_type_name="updp.ModelInputs",
    flatten_with_keys_fn=lambda x: (  # older versions of torch.export need it
        [(GetAttrKey("args"), x.args), (GetAttrKey("kwargs"), x.kwargs)],
        None,
    ),
)


def as_samples(value: Any) -> Samples:
    """A batch as inputs for a model: a dictionary by keyword, a tuple by position."""
    if isinstance(value, Tensor | ModelInputs):
        return value
    if isinstance(value, Mapping):
        return ModelInputs((), dict(value))
    return ModelInputs(value if isinstance(value, tuple) else (value,))


def arguments_of(*inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call; `inputs` may be one `ModelInputs`."""
    if len(inputs) == 1 and isinstance(inputs[0], ModelInputs):
        return inputs[0].args, inputs[0].kwargs
    return inputs, {}


def call(module: Callable[..., Any], *inputs: Any) -> Any:
    """Call a module with its inputs, or with one `ModelInputs`."""
    args, kwargs = arguments_of(*inputs)
    return module(*args, **kwargs)


def named_leaves(
    kind: type | tuple[type, ...], value: Any, path: str = ""
) -> Iterator[tuple[str, Any]]:
    """Each `kind` in a nested value, with its path such as `args.0` or `kwargs.input_ids`."""
    if isinstance(value, kind):
        yield path, value
        return
    if isinstance(value, ModelInputs):
        value = {"args": value.args, "kwargs": value.kwargs}
    parts = dict(enumerate(value)) if isinstance(value, list) else _parts(value)
    for key, part in parts.items():
        yield from named_leaves(kind, part, f"{path}.{key}" if path else str(key))


def named_tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors in a nested value with their paths, see `named_leaves`."""
    return named_leaves(Tensor, value)


def structure_of(value: Any, path: str = "") -> Any:
    """Description of a value for JSON, with the paths of its tensors as in `named_tensors`.

    `from_structure` restores tuples, lists, dictionaries, numbers, text and None as they are,
    other objects as dictionaries of their tensors, or None.
    """
    if isinstance(value, Tensor):
        return {"tensor": path}
    if isinstance(value, ModelInputs):
        return {"inputs": structure_of({"args": value.args, "kwargs": value.kwargs}, path)}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    parts = dict(enumerate(value)) if isinstance(value, list) else _parts(value)
    inner = {k: structure_of(part, f"{path}.{k}" if path else str(k)) for k, part in parts.items()}
    if isinstance(value, tuple | list):
        return {"list" if isinstance(value, list) else "tuple": list(inner.values())}
    return {"dict": inner} if inner or isinstance(value, Mapping) else {"value": None}


def from_structure(structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Restore the value that `structure_of` described, with the tensors given by path."""
    ((kind, held),) = structure.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "inputs":
        return ModelInputs(**from_structure(held, tensors))
    if kind == "dict":
        return {key: from_structure(part, tensors) for key, part in held.items()}
    if kind == "value":
        return held
    parts = [from_structure(part, tensors) for part in held]
    return tuple(parts) if kind == "tuple" else parts
