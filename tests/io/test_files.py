import os
from pathlib import Path

import pytest
import torch

from updp.errors import DamagedError, UserError
from updp.io.figures import Figures
from updp.io.files import (
    content_of,
    discard,
    read_json,
    read_tensors,
    remove,
    replace,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "file.bin"
    write_bytes(path, b"old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if broken == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new and longer")
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert path.read_bytes() == b"old"


def test_a_name_that_is_no_utf8_can_be_written_of(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "report.md", f"images of {name}")
    assert (tmp_path / "report.md").read_text() == r"images of caf\udce9"


def test_renames_and_removals_are_synced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    (tmp_path / "new").write_text("new")
    replace(tmp_path / "new", tmp_path / "file")
    file, folder = (path.stat().st_ino for path in (tmp_path / "file", tmp_path))
    assert synced == [file, folder]
    remove(tmp_path / "file")
    remove(tmp_path / "file")
    assert synced == [file, folder, folder]
    assert list(tmp_path.iterdir()) == []


def test_a_linked_folder_is_emptied_and_stays_a_folder(tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "disk" / "export", tmp_path / "export"
    elsewhere.mkdir(parents=True)
    (elsewhere / "model.onnx").write_text("x")
    link.symlink_to(elsewhere)
    discard(link)
    assert link.is_symlink()
    assert [*link.iterdir()] == [*elsewhere.iterdir()] == []


def test_tensors_and_notes_survive_a_round_trip(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": base.T,
        "shared": base,
        "part": base[1:],
        "grad": torch.nn.Parameter(torch.ones(2)),
        "count": torch.tensor(3),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "empty": torch.empty(0, 2),
    }
    notes = {"step": 3, "optimizer": {"0.step": 1.5, "1.name": None}}
    write_tensors(tmp_path / "t.safetensors", tensors, notes)
    read, read_notes = read_tensors(tmp_path / "t.safetensors")
    assert read_notes == notes
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    write_tensors(tmp_path / "t.safetensors", {})
    assert read_tensors(tmp_path / "t.safetensors") == ({}, None)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"choices": {"a": "drop", "b": "drop", "a": "conv1"}}')
    with pytest.raises(UserError, match="'a' is given twice"):
        read_json(path)


def test_json_survives_a_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"ü": [1, 2.5, None]})
    assert read_json(tmp_path / "a" / "b.json") == {"ü": [1, 2.5, None]}


def test_a_torn_row_of_figures_is_skipped(tmp_path: Path) -> None:
    figures = Figures(tmp_path / "figures.jsonl")
    assert figures.rows() == []
    figures.add(step=0, loss=0.5)
    figures.add(step=1, loss=float("inf"))
    with figures.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in figures.rows()] == [0, 1]
    figures.keep(lambda row: row["step"] < 1)
    figures.add(step=1, loss=0.25)
    assert figures.rows() == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25}]


@pytest.mark.parametrize("line", ['{"step": 1, "lo', "[1]"])
def test_a_damaged_row_of_figures_before_the_last_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(DamagedError, match=r"figures\.jsonl' is damaged in line 2: "):
        Figures(path).rows()


def test_too_little_memory_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError), content_of(tmp_path / "file"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(DamagedError), content_of(tmp_path / "file"):
        raise RuntimeError("sizes differ")
