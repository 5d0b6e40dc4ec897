"""The store of a search: a database table of plans that several processes and machines share.

A worker claims a plan before scoring it, by inserting its row, which can succeed once only. It then
updates the row's heartbeat until it has the score; a claim whose worker is dead is taken over.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from updp.errors import UserError, reason
from updp.search.score import Score
from updp.search.space import Genome

BEAT = 5.0  # seconds between heartbeats
GRACE = 30.0  # seconds without a heartbeat after which a worker counts as dead

_tables = sql.MetaData()
_plans = sql.Table(
    "updp_plans",
    _tables,
    sql.Column("study", sql.String(64), primary_key=True),
    sql.Column("genome", sql.String(2048), primary_key=True),
    sql.Column("worker", sql.String(128), nullable=False),
    sql.Column("beat", sql.Float, nullable=False),  # seconds, database's clock
    sql.Column("finished", sql.Integer, index=True),  # number in order of finishing, or null
    sql.Column("score", sql.Float),
    sql.Column("top1", sql.Float),
    sql.Column("images", sql.Integer),
    sql.Column("complete", sql.Boolean),
    sql.Column("seconds", sql.Float),
    sql.UniqueConstraint("study", "finished"),
)


@dataclass(frozen=True)
class Evaluated:
    """A plan that was scored, as number `finished` of its study, in `seconds` by `worker`."""

    genome: Genome
    score: Score
    finished: int
    seconds: float
    worker: str


Scores = Mapping[Genome, Evaluated]


class Store:
    """The plans of one study. Several processes and threads may use it at once."""

    def __init__(self, url: str, study: str) -> None:
        """Open or create the table. Raises UserError for a database that cannot be used."""
        self.study = study
        host, unique = socket.gethostname(), uuid.uuid4().hex[:8]
        self.worker = f"{host}/{os.getpid()}/{_started(os.getpid())}/{unique}"
        try:
            # Seconds that SQLite waits for another process that writes; its default is 5.
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
        """The store in the database of `url`; without one, in a SQLite file in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(url or f"sqlite:///{(folder / 'plans.db').resolve()}", study)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connections."""
        self._engine.dispose()

    def results(self) -> dict[Genome, Evaluated]:
        """The scored plans, in the order of finishing."""
        query = (
            sql.select(_plans)
            .where(_plans.c.study == self.study, _plans.c.finished.is_not(None))
            .order_by(_plans.c.finished)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found = {}
        for row in rows:
            genome, score = (
                _genome(row.genome),
                Score(row.score, row.top1, row.images, row.complete),
            )
            found[genome] = Evaluated(genome, score, row.finished, row.seconds, row.worker)
        return found

    def claim(self, genome: Genome) -> bool:
        """Claim the plan for this worker, unless it is scored or a live worker has claimed it."""
        with self._engine.begin() as connection:
            row = connection.execute(sql.select(_plans).where(self._is(genome))).one_or_none()
            now = _now(connection)
            if row is not None:
                if row.finished is not None or not _dead(row.worker, now - row.beat):
                    return False
                # The condition on the dead worker fails where another worker was quicker.
                change = sql.update(_plans).where(self._claimed(genome, row.worker))
                taken = connection.execute(change.values(worker=self.worker, beat=now))
                return bool(taken.rowcount == 1)
        new = {"study": self.study, "genome": _text(genome), "worker": self.worker, "beat": now}
        try:
            with self._engine.begin() as connection:
                connection.execute(sql.insert(_plans).values(**new))
        except IntegrityError:  # another worker was quicker
            return False
        return True

    def finish(self, genome: Genome, score: Score, seconds: float) -> None:
        """Store the score of a claimed plan; ignored where another worker has taken it over."""
        last = sql.select(sql.func.coalesce(sql.func.max(_plans.c.finished), -1) + 1).where(
            _plans.c.study == self.study
        )
        change = sql.update(_plans).where(self._claimed(genome, self.worker))
        while True:
            try:
                with self._engine.begin() as connection:
                    number = connection.execute(last).scalar_one()
                    values = {"finished": number, **vars(score), "seconds": seconds}
                    connection.execute(change.values(**values))
                return
            except IntegrityError:  # two finished at once and took the same number
                continue

    @contextmanager
    def scoring(self, genome: Genome) -> Iterator[None]:
        """Send heartbeats while a claimed plan is scored; release the claim if that fails."""
        ended = threading.Event()
        mine = self._claimed(genome, self.worker)

        def beat() -> None:
            while not ended.wait(BEAT):
                with self._engine.begin() as connection:
                    change = sql.update(_plans).where(mine)
                    connection.execute(change.values(beat=_now(connection)))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with self._engine.begin() as connection:
                connection.execute(sql.delete(_plans).where(mine))
            raise
        finally:
            ended.set()
            thread.join()

    def _is(self, genome: Genome) -> sql.ColumnElement[bool]:
        """The condition for the row of a plan."""
        return sql.and_(_plans.c.study == self.study, _plans.c.genome == _text(genome))

    def _claimed(self, genome: Genome, worker: str) -> sql.ColumnElement[bool]:
        """The condition for the row of a plan that `worker` has claimed and not finished."""
        return sql.and_(self._is(genome), _plans.c.worker == worker, _plans.c.finished.is_(None))


def _create(engine: sql.Engine) -> None:
    """Create the table. Where processes start at once, all but one may fail to, and try again."""
    for last in (False, False, True):
        try:
            _tables.create_all(engine)
            return
        except SQLAlchemyError:
            if last or not sql.inspect(engine).has_table(_plans.name):
                raise


def _now(connection: sql.Connection) -> float:
    """Seconds by the database's clock, because the clocks of several machines differ."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(sql.text("select extract(epoch from now())")).scalar_one())
    return time.time()


def _dead(worker: str, silent: float) -> bool:
    """Whether a worker is gone, after `silent` seconds; at once for a process of this host."""
    host, pid, started, _ = worker.split("/")
    gone = host == socket.gethostname() and started and _started(int(pid)) != started
    return bool(gone) or silent > GRACE


def _started(pid: int) -> str:
    """Start time of a process, which tells it from a later one of that id; empty if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sql.make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _text(genome: Genome) -> str:
    return ",".join(map(str, genome))


def _genome(text: str) -> Genome:
    return tuple(map(int, text.split(",")))
