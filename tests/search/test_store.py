import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from updp import UserError
from updp.search import Score, Store
from updp.search import store as module

SCORE = Score(0.25, 90.0, 100)


def store(tmp_path: Path, study: str = "s") -> Store:
    return Store.in_folder(tmp_path, study)


def test_a_finished_score_is_known_to_all_workers(tmp_path: Path) -> None:
    one, other = store(tmp_path), store(tmp_path)
    scores = {(0, 1): SCORE, (2, 0): Score(float("inf"), 0.0, 64, complete=False)}
    for genome, score in scores.items():
        assert one.claim(genome)
        with one.scoring(genome):
            one.finish(genome, score, 1.5)
    assert {g: e.score for g, e in other.results().items()} == scores
    assert [e.finished for e in other.results().values()] == [0, 1]
    assert store(tmp_path, "another").results() == {}


def test_a_plan_is_claimed_once(tmp_path: Path) -> None:
    one, other = store(tmp_path), store(tmp_path)
    assert one.claim((1, 2))
    assert not other.claim((1, 2))
    assert not one.claim((1, 2))
    assert other.claim((2, 1))
    assert store(tmp_path, "another").claim((1, 2))


def test_many_workers_claim_each_plan_once(tmp_path: Path) -> None:
    plans = [(i,) for i in range(40)]
    store(tmp_path)

    def work(number: int) -> list[tuple[int, ...]]:
        mine, taken = store(tmp_path), []
        for plan in plans if number % 2 else plans[::-1]:
            if mine.claim(plan):
                with mine.scoring(plan):
                    mine.finish(plan, Score(plan[0], 0.0, 1), 0.0)
                taken.append(plan)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [plan for found in pool.map(work, range(4)) for plan in found]
    assert sorted(taken) == plans
    results = store(tmp_path).results()
    assert {g: e.score.score for g, e in results.items()} == {p: p[0] for p in plans}
    assert [e.finished for e in results.values()] == list(range(40))


def test_a_claim_is_released_when_scoring_fails(tmp_path: Path) -> None:
    one, other = store(tmp_path), store(tmp_path)
    assert one.claim((1,))
    with pytest.raises(KeyboardInterrupt), one.scoring((1,)):
        raise KeyboardInterrupt
    assert other.claim((1,))


def test_a_dead_workers_plan_is_taken_over_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from updp.search import Store;"
        "assert Store.in_folder(Path(sys.argv[1]), 's').claim((3,))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    one, other = store(tmp_path), store(tmp_path)
    assert one.results() == {}
    assert one.claim((3,))
    assert not other.claim((3,))


def test_a_silent_worker_elsewhere_is_dead_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, near = store(tmp_path), store(tmp_path)
    far.worker = "elsewhere/1/1/a"
    assert far.claim((3,))
    assert not near.claim((3,))
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + module.GRACE + 1)
    assert near.claim((3,))
    # It was alive after all: its score comes too late, and counts for nothing.
    far.finish((3,), SCORE, 1.0)
    assert near.results() == {}
    near.finish((3,), Score(0.5, 1.0, 2), 1.0)
    assert near.results()[(3,)].score.score == 0.5


def test_a_heartbeat_keeps_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far, near = store(tmp_path), store(tmp_path)
    far.worker = "elsewhere/1/1/a"
    beats = threading.Event()
    real = module._now

    def now(connection: object) -> float:
        beats.set()
        return real(connection) + module.GRACE + 1  # type: ignore[arg-type]

    assert far.claim((3,))
    monkeypatch.setattr(module, "BEAT", 0.001)
    monkeypatch.setattr(module, "_now", now)
    with far.scoring((3,)):
        beats.clear()
        beats.wait()
        beats.clear()
        beats.wait()  # the first one is in the table
        assert not near.claim((3,))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nonsense", "nonsense"),
        ("nosuch://host/name", "nosuch://host/name"),
        ("sqlite:////no/such/folder/x.db", "sqlite:////no/such/folder/x.db"),
        (
            "postgresql+psycopg://me:secret@localhost:1/x",
            "postgresql+psycopg://me:***@localhost:1/x",
        ),
    ],
)
def test_an_unusable_database_is_an_error_without_the_password(url: str, shown: str) -> None:
    if "psycopg" in url:
        pytest.importorskip("psycopg")
    with pytest.raises(UserError) as refused:
        Store(url, "s")
    assert str(refused.value).startswith(f"storage {shown!r} cannot be used: ")
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)
