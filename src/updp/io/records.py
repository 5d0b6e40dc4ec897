"""A JSON file that `updp` wrote, read and checked: users copy, cut and edit them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from updp.errors import UserError, reason

T = TypeVar("T")


def read_checked(path: Path, model: type[T]) -> T:
    """What the file holds, as `model` has it; further fields are left out.

    Raises UserError that names the file, and the first field that is not as it should be.
    """
    try:
        return TypeAdapter(model).validate_python(json.loads(path.read_text()))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "it"
        raise UserError(f"'{path}' is not what updp writes: {field}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {reason(error)}") from error
