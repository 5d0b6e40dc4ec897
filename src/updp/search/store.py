"""Where a search is kept: a table of plans that several processes and machines share.

A plan is claimed before it is scored, by inserting its row, which can succeed once only. Whoever
scores it shows that it lives; a claim whose owner does not is taken over.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from updp.errors import UserError, reason
from updp.search.score import Score
from updp.search.space import Genome

BEAT = 5.0  # seconds between signs of life
GRACE = 30.0  # seconds without one after which a worker counts as dead

_tables = sql.MetaData()
_plans = sql.Table(
    "updp_plans",
    _tables,
    sql.Column("study", sql.String(64), primary_key=True),
    sql.Column("genome", sql.String(2048), primary_key=True),
    sql.Column("worker", sql.String(128), nullable=False),
    sql.Column("beat", sql.Float, nullable=False),  # by the database's clock
    sql.Column("finished", sql.Integer, index=True),  # the order of ending; null: claimed
    sql.Column("score", sql.Float),
    sql.Column("top1", sql.Float),
    sql.Column("images", sql.Integer),
    sql.Column("complete", sql.Boolean),
    sql.Column("seconds", sql.Float),
    sql.UniqueConstraint("study", "finished"),
)


@dataclass(frozen=True)
class Evaluated:
    """A plan that was scored, as the `finished`-th of its study, in so many seconds."""

    genome: Genome
    score: Score
    finished: int
    seconds: float
    worker: str


class Store:
    """One study's plans. Safe to use from several processes at once."""

    def __init__(self, url: str, study: str) -> None:
        """Open or create it. Raises UserError for a database that cannot be used."""
        self.study = study
        host, unique = socket.gethostname(), uuid.uuid4().hex[:8]
        self.worker = f"{host}/{os.getpid()}/{_started(os.getpid())}/{unique}"
        try:
            options = {"timeout": 60} if url.startswith("sqlite") else {}
            self._engine = sql.create_engine(url, connect_args=options, pool_pre_ping=True)
            _create(self._engine)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, SQLAlchemyError) as error:
            raise UserError(
                f"storage {_shown(url)!r} cannot be used: {reason(error)}; give sqlite:///FILE or "
                "postgresql+psycopg://USER@HOST/NAME"
            ) from error

    @classmethod
    def in_folder(cls, folder: Path, study: str, url: str | None = None) -> Store:
        """The database of that URL, or SQLite in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(url or f"sqlite:///{(folder / 'plans.db').resolve()}", study)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connections."""
        self._engine.dispose()

    def results(self) -> dict[Genome, Evaluated]:
        """What was scored, in the order of ending."""
        query = (
            sql.select(_plans)
            .where(_plans.c.study == self.study, _plans.c.finished.is_not(None))
            .order_by(_plans.c.finished)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {
            (g := _genome(row.genome)): Evaluated(
                g,
                Score(row.score, row.top1, row.images, row.complete),
                row.finished,
                row.seconds,
                row.worker,
            )
            for row in rows
        }

    def claim(self, genome: Genome) -> bool:
        """Whether the plan is this worker's to score: nobody has, and nobody alive is about to."""
        row = {"study": self.study, "genome": _text(genome)}
        with self._engine.begin() as connection:
            there = connection.execute(self._row(genome)).one_or_none()
            now = _now(connection)
            if there is not None:
                if there.finished is not None or not _dead(there.worker, now - there.beat):
                    return False
                mine = sql.update(_plans).where(
                    _plans.c.study == self.study,
                    _plans.c.genome == row["genome"],
                    _plans.c.worker == there.worker,  # unless another has been quicker
                    _plans.c.finished.is_(None),
                )
                taken = connection.execute(mine.values(worker=self.worker, beat=now))
                return bool(taken.rowcount == 1)
        try:
            with self._engine.begin() as connection:
                connection.execute(sql.insert(_plans).values(**row, worker=self.worker, beat=now))
        except IntegrityError:  # another has been quicker
            return False
        return True

    def finish(self, genome: Genome, score: Score, seconds: float) -> None:
        """Keep the score of a claimed plan; ignored where another has taken it over and ended."""
        last = sql.select(sql.func.coalesce(sql.func.max(_plans.c.finished), -1) + 1).where(
            _plans.c.study == self.study
        )
        change = sql.update(_plans).where(self._mine(genome))
        while True:
            try:
                with self._engine.begin() as connection:
                    number = connection.execute(last).scalar_one()
                    values = {"finished": number, **vars(score), "seconds": seconds}
                    connection.execute(change.values(**values))
                return
            except IntegrityError:  # two ended at once and took the same number
                continue

    @contextmanager
    def scoring(self, genome: Genome) -> Iterator[None]:
        """Show that a claimed plan is being scored; where that fails it is nobody's again."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                with self._engine.begin() as connection:
                    change = sql.update(_plans).where(mine)
                    connection.execute(change.values(beat=_now(connection)))

        mine = self._mine(genome)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with self._engine.begin() as connection:
                connection.execute(sql.delete(_plans).where(mine))
            raise
        finally:
            over.set()
            thread.join()

    def _mine(self, genome: Genome) -> sql.ColumnElement[bool]:
        """A plan that this worker has claimed and not finished."""
        return sql.and_(
            _plans.c.study == self.study,
            _plans.c.genome == _text(genome),
            _plans.c.worker == self.worker,
            _plans.c.finished.is_(None),
        )

    def _row(self, genome: Genome) -> sql.Select[Any]:
        return sql.select(_plans.c.worker, _plans.c.beat, _plans.c.finished).where(
            _plans.c.study == self.study, _plans.c.genome == _text(genome)
        )


def _create(engine: sql.Engine) -> None:
    """Make the table; processes that start at once may both try."""
    for last in (False, False, True):
        try:
            _tables.create_all(engine)
            return
        except SQLAlchemyError:
            if last or not sql.inspect(engine).has_table(_plans.name):
                raise


def _now(connection: sql.Connection) -> float:
    """The database's clock, for those of several machines differ."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(sql.text("select extract(epoch from now())")).scalar_one())
    return time.time()


def _dead(worker: str, silent: float) -> bool:
    """Whether a worker is gone: at once where its process can be looked for."""
    host, pid, started, _ = worker.split("/")
    gone = host == socket.gethostname() and started and _started(int(pid)) != started
    return bool(gone) or silent > GRACE


def _started(pid: int) -> str:
    """When a process began, so that a number given to another one is seen; empty: not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _shown(url: str) -> str:
    try:
        return sql.make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _text(genome: Genome) -> str:
    return ",".join(map(str, genome))


def _genome(text: str) -> Genome:
    return tuple(map(int, text.split(",")))
