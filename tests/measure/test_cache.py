"""A cache of latencies: whatever is in its folder, what it says was put there."""

from __future__ import annotations

import json
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from updp.errors import UserError
from updp.measure import LatencyTable
from updp.measure.cache import cache_folder, device_name
from updp.recipe import MeasureSettings

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UPDP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(**settings: Any) -> LatencyTable:
    return LatencyTable.open(CPU, MeasureSettings.model_validate(settings))


def test_an_entry_is_there_for_the_next_table(folder: Path) -> None:
    table = opened()
    assert table.get("a") is None
    assert not folder.exists()  # nothing is written before there is something to keep
    table.put("a", {"ms": [1.5, 2.0]})
    assert table.get("a") == opened().get("a") == {"ms": [1.5, 2.0]}


def test_one_file_for_each_way_of_measuring(
    folder: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"runtime": "compile"},
        *({"runtime": name} for name in ("onnxruntime", "openvino") if find_spec(name)),
        {"layout": "channels_last"},
        {"precision": "float16"},
    ]
    for i, settings in enumerate(ways):
        assert opened(**settings).get("a") is None
        opened(**settings).put("a", i)
    torch.set_num_threads(2)
    opened().put("a", "two threads")
    monkeypatch.setattr("updp.measure.cache.device_name", lambda _: "another device")
    opened().put("a", "another device")
    assert len(list(folder.glob("*.json"))) == len(ways) + 2
    assert opened().get("a") == "another device"


def test_batch_size_and_rounds_share_one_file(folder: Path) -> None:
    opened(batch_size=4, rounds=5).put("a", 1)
    assert opened().get("a") == 1


def test_the_file_name_says_how_latencies_were_measured(folder: Path, one_thread: None) -> None:
    opened(precision="bfloat16").put("a", 1)
    (file,) = folder.glob("*.json")
    assert f"-1-{torch.__version__}".split("+")[0] in file.name
    assert "-eager-contiguous-bfloat16-" in file.name
    assert json.loads(file.read_text())["about"]["device"] == device_name(CPU)


def test_without_cache_the_table_is_in_memory_only(folder: Path) -> None:
    table = opened(cache=False)
    table.put("a", 1)
    assert table.get("a") == 1
    assert opened(cache=False).get("a") is None
    assert not folder.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"about"', b"[]", b"null", b"\xff\xfe", b'{"about": null, "entries": {"a": 1}}'],
)
def test_a_torn_or_foreign_file_is_replaced(folder: Path, content: bytes) -> None:
    opened().put("a", "ours")
    (file,) = folder.glob("*.json")
    file.write_bytes(content)
    table = opened()
    assert table.get("a") is None
    table.put("b", 2)
    assert opened().get("b") == 2
    assert opened().get("a") is None


def test_entries_of_two_tables_are_all_kept(folder: Path) -> None:
    one, two = opened(), opened()
    one.put("a", 1)
    two.put("b", 2)
    one.put("c", 3)
    assert [opened().get(key) for key in "abc"] == [1, 2, 3]


def put_many(file: Path, name: str) -> None:
    table = LatencyTable(file, "about")
    for i in range(20):
        table.put(f"{name}{i}", i)


def test_entries_of_two_processes_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    processes = [tiny.start(put_many, file, name) for name in "ab"]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    table = LatencyTable(file, "about")
    assert [table.get(f"{name}{i}") for name in "ab" for i in range(20)] == [*range(20)] * 2
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UPDP_CACHE", str(tmp_path / "file" / "cache"))
    table = opened()
    table.put("a", 1)
    assert table.get("a") == 1


def test_the_users_cache_folder_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPDP_CACHE")
    monkeypatch.setattr("updp.measure.cache.user_cache_dir", lambda name: f"/somewhere/{name}")
    assert cache_folder() == Path("/somewhere/updp")


def test_device_names_come_from_the_cpu_or_the_platform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert device_name(CPU)
    assert device_name(torch.device("mps")).endswith(" mps")
    monkeypatch.setattr(
        Path, "read_text", lambda self: "processor : 0\nmodel name : Some CPU @ 2\n"
    )
    assert device_name(CPU) == "Some CPU @ 2"
    monkeypatch.setattr(Path, "read_text", lambda self: "")
    assert device_name(CPU) == (platform.processor() or platform.machine())


def test_opening_a_table_names_the_missing_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"measure\.runtime=onnxruntime needs onnxruntime"):
        opened(runtime="onnxruntime")


def test_a_user_without_a_name_and_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(name: str) -> str:
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv("UPDP_CACHE")
    monkeypatch.setattr("updp.measure.cache.user_cache_dir", nameless)
    opened().put("a", 1)
    assert opened().get("a") is None
