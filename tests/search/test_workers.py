"""Kills and many workers: nothing is scored twice, and nothing but what was under way is lost."""

import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.search import test_loop as contract
from tests.search.workers import finished, said, work
from updp.search import pareto


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'plans.db'}"


def test_a_search_killed_ten_times_scores_the_same_plans(tmp_path: Path) -> None:
    whole = contract.run(contract.make_task("bayes"), contract.Judge(), tmp_path / "whole")
    url, log = sqlite(tmp_path), tmp_path / "log"
    log.touch()
    chance, kills = random.Random(0), 0
    while kills < 10:
        process = tiny.start(work, url, str(log))
        before = len(said(log, "end"))
        while process.is_alive() and len(said(log, "end")) < before + 2:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.join()
        kills += 1
    tiny.fresh(work, url, str(log))
    results = finished(url)
    assert contract.scores(dict(sorted(results.items()))) == sorted(contract.scores(whole))
    asked = contract.make_task("bayes")
    assert [e.genome for e in pareto(results.values(), asked)] == [
        e.genome for e in pareto(whole.values(), asked)
    ]
    # What was under way when it was killed is scored again, and nothing else.
    begun, ended = Counter(said(log, "begin")), Counter(said(log, "end"))
    assert sum(begun.values()) <= len(whole) + kills
    assert len(ended) == len(whole)
    assert sum(ended.values()) <= len(whole) + kills


def together(url: str, log: Path, whole_folder: Path) -> None:
    """Four workers, one of which is killed."""
    whole = contract.run(contract.make_task("bayes"), contract.Judge(), whole_folder)
    log.touch()
    processes = [tiny.start(work, url, str(log), 0.02) for _ in range(4)]
    while len(said(log, "end")) < 10:
        time.sleep(0.005)
    processes[0].kill()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes[1:]] == [0, 0, 0]
    results = finished(url)
    assert contract.scores(dict(sorted(results.items()))) == sorted(contract.scores(whole))
    begun = said(log, "begin")
    assert len(begun) <= len(whole) + 1  # the killed one's is scored again
    assert len({e.worker for e in results.values()}) >= 3


def test_four_workers_on_sqlite_with_one_killed(tmp_path: Path) -> None:
    together(sqlite(tmp_path), tmp_path / "log", tmp_path / "whole")


@pytest.fixture
def postgresql() -> Iterator[str]:
    """A server of its own, on a socket in a temporary folder."""
    pytest.importorskip("psycopg")
    places = [Path("/usr/local/bin"), *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    found = [p for p in places if (p / "initdb").exists() and (p / "postgres").exists()]
    if not found:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    user: dict[str, str] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        user = {
            "user": next((u.pw_name for u in pwd.getpwall() if u.pw_name == "postgres"), "nobody")
        }
    folder = tempfile.mkdtemp(prefix="updp-postgresql-")
    if user:
        shutil.chown(folder, **user)
    binaries, data = found[-1], Path(folder) / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    command = [binaries / "initdb", "-D", data, "-A", "trust", "-U", "updp"]
    subprocess.run(command, check=True, **quiet)  # type: ignore[call-overload]
    command = [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="]
    server = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    try:
        import psycopg

        for _ in range(200):
            try:
                psycopg.connect(host=folder, user="updp", dbname="postgres").close()
                break
            except psycopg.OperationalError:
                time.sleep(0.1)
        yield f"postgresql+psycopg://updp@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for connections to close
        server.wait()
        shutil.rmtree(folder)


@pytest.mark.slow
def test_four_workers_on_postgresql_with_one_killed(postgresql: str, tmp_path: Path) -> None:
    together(postgresql, tmp_path / "log", tmp_path / "whole")
