"""Checks of an item's labels; each returns a fault in one line, or an empty text."""

from typing import Any

from updp.blocks.nested import tensors_in


def not_finite(labels: Any) -> str:
    """Report labels that are NaN or infinite."""
    if all(x.isfinite().all() for x in tensors_in(labels)):
        return ""
    return (
        "its labels hold NaN or infinite values: mend them, or leave the item out with "
        "data.skip_corrupt=true"
    )


def not_shares(labels: Any) -> str:
    """Report labels that are not between zero and one."""
    if fault := not_finite(labels):
        return fault
    for x in tensors_in(labels):
        if (apart := (x < 0) | (x > 1)).any():
            return f"its labels hold {float(x[apart][0]):.3g}: labels are zeros and ones"
    return ""


def not_classes(labels: Any) -> str:
    """Report labels that are not whole numbers, such as masks divided by 255."""
    if fault := not_finite(labels):
        return fault
    for x in tensors_in(labels):
        if x.is_floating_point() and (apart := x != x.round()).any():
            value = float(x[apart][0])
            return f"its labels hold {value:.3g}: labels are classes, whole numbers from 0 on"
    return ""


def not_of_model(labels: Any, *, classes: int, ignored: int) -> str:
    """Report labels that are neither 0 to `classes` - 1 nor `ignored`."""
    if fault := not_classes(labels):
        return fault
    for x in tensors_in(labels):
        wrong = ((x < 0) | (x >= classes)) & (x != ignored)
        if not wrong.any():
            continue
        value = int(x[wrong][0])
        if value in {-1, -100, 255}:  # common values for "ignore"
            return f"its labels hold {value}: {value} for what is ignored must be {ignored}"
        return (
            f"its labels hold {value}: the model's {classes} classes are 0 to {classes - 1}, and "
            f"{ignored} is ignored"
        )
    return ""
