"""Schemas of JSON files in a run directory.

Users copy, shorten and edit these files, so any error in them is reported in one line.
"""

import reprlib
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ValidationError

from updp.errors import DamagedError, UserError
from updp.io.files import read_json, write_json

FORMAT = 1  # the version of all schemas


class Record(BaseModel, frozen=True):
    """The schema of one JSON file; `FILE` is its path in the run directory.

    Unknown fields are ignored, so that a later version may add some.
    """

    FILE: ClassVar[str]
    WHAT: ClassVar[str] = "what updp writes"  # for messages
    format: int = FORMAT  # version of the schema

    @classmethod
    def path(cls, run: Path) -> Path:
        """Path of the file in the run directory `run`."""
        return run / cls.FILE

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read the file of a run directory. Raises UserError that names file and field."""
        return cls.read_file(cls.path(run))

    @classmethod
    def read_if_there(cls, run: Path) -> Self | None:
        """Read the file like `read`, or return None if it does not exist."""
        return cls.read(run) if cls.path(run).exists() else None

    @classmethod
    def read_file(cls, path: Path) -> Self:
        """Read a file anywhere. Raises UserError that names file and field."""
        data = read_json(path)
        try:
            return cls.parsed(data, "it")
        except UserError as error:
            raise DamagedError(path, str(error).removeprefix("it ")) from error

    @classmethod
    def parsed(cls, data: Any, source: str) -> Self:
        """Validate plain data. Raises UserError that names `source` and the first bad field."""
        if isinstance(data, dict) and (found := data.get("format")) != FORMAT:
            later = isinstance(found, int) and found > FORMAT
            raise UserError(
                f"{source} is not {cls.WHAT}: its format is {reprlib.repr(found)}, and this "
                f"version reads {FORMAT}{'; update updp to open it' if later else ''}"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "it"
            raise UserError(f"{source} is not {cls.WHAT}: {field}: {first['msg']}") from error

    def write(self, run: Path) -> None:
        """Write the file atomically."""
        write_json(self.path(run), self.model_dump(mode="json"))
