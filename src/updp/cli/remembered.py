"""What a command is about: its options, else what the run directory remembers."""

from pathlib import Path

from updp.cli.options import TeacherOptions
from updp.errors import UserError
from updp.plan import Plan
from updp.run.records import RunRecord


class Remembered:
    """What the run in the folder `out`, if there is one, was begun with."""

    def __init__(self, out: Path) -> None:
        self._record = RunRecord.read_if_there(out)

    def required(self, name: str, given: str | None) -> str:
        """An option, or what the run was begun with. Raises UserError where neither is there."""
        known = given if given is not None else getattr(self._record, name, "")
        if not known:
            raise UserError(f"--{name} is missing: give it, or an --out that holds a run")
        return str(known)

    def weights(self, model: str | None, given: str | None) -> str | None:
        """The option, or the run's weights, if it is about the same model."""
        if given is not None or not self._is_about(model):
            return given
        return self._record.weights or None if self._record else None

    def teacher(self, model: str | None, given: TeacherOptions) -> tuple[str | None, str | None]:
        """The options, or the run's teacher: with its model, and weights with their teacher."""
        name, weights, record = given.teacher, given.teacher_weights, self._record
        if record is None or not self._is_about(model):
            return name, weights
        if name is None:
            name = record.teacher or None
        if weights is None and name == record.teacher:
            weights = record.teacher_weights or None
        return name, weights

    def _is_about(self, model: str | None) -> bool:
        return model is None or (self._record is not None and model == self._record.model)


def read_plan(file: Path | None) -> Plan | None:
    """The plan in a file. Raises UserError that names the file."""
    return None if file is None else Plan.read_file(file)
