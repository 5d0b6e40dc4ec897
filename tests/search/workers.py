"""A search in processes of its own, on a synthetic score that takes a moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.search import test_loop as contract
from updp.io.progress import Silent
from updp.search import Evaluated, Score, Store, search
from updp.search.space import Genome


def work(url: str, log: str, seconds: float = 0.01) -> None:
    """Search until there are enough plans; say in the log when a score begins and ends."""

    def say(word: str, choices: Mapping[str, str]) -> None:
        line = f"{word} {os.getpid()} {','.join(map(':'.join, choices.items()))}\n"
        with Path(log).open("a") as file:
            file.write(line)

    def judge(choices: Mapping[str, str], hopeless: Callable[[float], bool]) -> Score:
        say("begin", choices)
        time.sleep(seconds)
        say("end", choices)
        return contract.Judge()(choices, hopeless)

    with Store(url, "s") as store:
        search(contract.make_task("bayes"), judge, store, Silent())


def finished(url: str) -> dict[Genome, Evaluated]:
    """What is in the store."""
    with Store(url, "s") as store:
        return store.results()


def said(log: Path, word: str) -> list[str]:
    """The plans whose score began or ended, in order."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [rest[-1] if len(rest) > 1 else "" for first, *rest in lines if first == word]
