"""Match the classes of a data set with those of the model."""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from updp.data.source import Source
from updp.errors import UserError, reason

_log = logging.getLogger(__name__)

FILES = ("classes.txt", "classes.json")
Names = tuple[str, ...]  # names of one class, such as ("n02123045", "tabby", "tabby cat")

_WORDNET = re.compile(r"n\d{8}\b")


def read_class_file(root: Path) -> list[Names] | None:
    """The classes in the order of the model's outputs, from `classes.txt` or `classes.json`.

    Text has one class per line; JSON has a list of names, `{"name": 0, ...}`, or
    `{"0": "name", ...}` with a name or a list of names for each class.

    Raises:
        UserError: the file cannot be read, or is none of these.
    """
    for name in FILES:
        file = root / name
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            classes = lines if file.suffix == ".txt" else _listed(json.loads(text))
            return [_aliases(names) for names in classes]
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ) as error:
            raise UserError(
                f"'{file}' cannot be read ({reason(error)}): write the names of the classes in the "
                'order of the model\'s outputs, one a line (classes.txt) or as ["name", ...]'
            ) from error
    return None


def order_classes(source: Source, order: Sequence[Names], file: str) -> Source:
    """Number the classes as a file says. Raises UserError if it lacks one of the data's classes."""
    names = tuple(aliases[0] for aliases in order)
    if source.indexed or not source.classes:  # the data has numbers alone, or no labels
        if len(names) < len(source.classes):
            raise UserError(
                f"'{file}' names {len(names)} classes and the data has {len(source.classes)}: add "
                "the lines that are missing"
            )
        return replace(source, classes=names)
    found = _find(source.classes, order)
    missing = [name for name, index in zip(source.classes, found, strict=True) if index is None]
    if missing:
        raise UserError(f"class '{missing[0]}' of the data is not in '{file}': add its line")
    return _renumbered(source, [index for index in found if index is not None], names)


def match_classes(source: Source, outputs: int, *, model: str, data: str) -> Source:
    """The source with the model's classes: as many, and labels that are indices of its outputs.

    Where the data has fewer classes than the model, it must name them by index, WordNet id or
    ImageNet's names; where it has as many, they are in the order of the model's outputs.

    Args:
        source: the data set.
        outputs: number of the model's classes.
        model: name of the model in errors.
        data: name of the data in errors.

    Raises:
        UserError: the data has more classes, or they cannot be found among the model's.
    """
    count = len(source.classes)
    if count > outputs and source.indexed:
        raise UserError(
            f"{data} has label {count - 1} and {model} {outputs} classes: labels "
            f"must be 0 to {outputs - 1}"
        )
    if count > outputs:
        raise UserError(
            f"{model} has {outputs} classes and {data} {count}: give a model made for these classes"
        )
    if count == outputs:
        _warn_of_numbers(source)
        return source
    if source.indexed or not source.classes:
        more = tuple(str(index) for index in range(count, outputs))
        return replace(source, classes=source.classes + more)
    numbers = [str(int(name)) if name.isdecimal() else name for name in source.classes]
    by_index = [(str(index),) for index in range(outputs)]
    for names, order in ((numbers, by_index), (source.classes, _imagenet(outputs))):
        mapping = [index for index in _find(names, order) if index is not None]
        if len(set(mapping)) == count:
            return _renumbered(source, mapping, tuple(aliases[0] for aliases in order))
    raise UserError(
        f"{model} has {outputs} classes and {data} {count}, such as "
        f"'{source.classes[0]}': name them by the model's index or WordNet id, or list the model's "
        "classes in classes.txt in the data's folder, one a line"
    )


def _warn_of_numbers(source: Source) -> None:
    """Warn if class folders are numbers whose order as text is not their order as numbers."""
    names = source.classes
    if source.indexed or not all(name.isdecimal() for name in names):
        return
    if (numbers := [int(name) for name in names]) != sorted(numbers):
        index = next(i for i, number in enumerate(sorted(numbers)) if number != numbers[i])
        _log.warning(
            "the classes are numbers and taken in the order of text, as torchvision's ImageFolder "
            "does: '%s' is the model's output %d. If its outputs are in the order of the numbers, "
            "list them so in classes.txt in the data's folder, one a line",
            names[index],
            index,
        )


def _renumbered(source: Source, mapping: Sequence[int], classes: tuple[str, ...]) -> Source:
    """Change label i to `mapping[i]`, modifying the images; also update the fingerprint."""
    if list(mapping) == list(range(len(source.classes))):
        return replace(source, classes=classes, indexed=True)
    for images in (source.train, source.test):
        if images.labelled:
            images.targets = [mapping[label] for label in images.targets]
    text = f"{source.fingerprint} {list(mapping)}"
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    return replace(source, classes=classes, indexed=True, fingerprint=fingerprint)


def _find(names: Sequence[str], order: Sequence[Names]) -> list[int | None]:
    """Position of each name in `order`; None if no class, or more than one, has this name."""
    index: dict[str, int | None] = {}
    for position, aliases in enumerate(order):
        for alias in dict.fromkeys(aliases):
            index[alias] = None if alias in index else position
    return [
        next((index[alias] for alias in _aliases(name) if index.get(alias) is not None), None)
        for name in names
    ]


def _aliases(names: Any) -> Names:
    """All names of a class: as written, its WordNet id, and the parts of a comma-separated list."""
    given = [names] if isinstance(names, str) else [str(name) for name in names]
    more = [match.group() for name in given if (match := _WORDNET.match(name))]
    return tuple(dict.fromkeys([*given, *more, *(p for name in given for p in name.split(", "))]))


def _listed(data: Any) -> list[Any]:
    """The classes of a JSON file, in order."""
    if isinstance(data, list):
        return data
    if all(isinstance(index, int) for index in data.values()):
        data = {index: name for name, index in data.items()}
    by_number = {int(index): name for index, name in data.items()}
    return [by_number[index] for index in range(len(by_number))]


def _imagenet(outputs: int) -> list[Names]:
    """Classes of ImageNet, or of a subset with this number of classes, as WordNet ids and names."""
    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset is None:
        return []
    info = ImageNetInfo(subset)
    return [
        (name, *info.label_name_to_description(name).split(", ")) for name in info.label_names()
    ]
