import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.test_images import png
from updp.data import Batches, Images, open_source
from updp.data.order import Groups
from updp.data.readers import parquet
from updp.data.readers.encoded import EncodedSplit
from updp.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})}


def write(path: Path, rows: list[tuple[bytes | None, Any]], metadata: dict | None = None) -> None:
    image = pa.array(
        [{"bytes": data, "path": f"{i}.png"} for i, (data, _) in enumerate(rows)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": image, "label": pa.array([label for _, label in rows])})
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "train-00000-of-00002.parquet", [(png(4, 3, colour=1), 1)], NAMES)
    write(tmp_path / "train-00001-of-00002.parquet", [(png(4, 3, colour=2), 0)] * 2, NAMES)
    write(tmp_path / "validation.parquet", [(png(4, 3, colour=3), 1)], NAMES)
    return tmp_path


def test_shards_are_one_split(root: Path) -> None:
    source = open_source(str(root), input_size=None)
    assert source.classes == ("cat", "dog")
    assert source.image_size == (3, 3, 4)
    assert list(source.train.targets) == [1, 0, 0]
    assert [int(source.train[i][0].max()) for i in range(3)] == [1, 2, 2]
    assert int(source.test[0][0].max()) == 3


def test_shards_that_mean_other_classes_by_a_label_are_refused(root: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["ant", "dog"]}}}}
    write(root / "train-2.parquet", [(png(4, 3), 0)], {"huggingface": json.dumps(names)})
    with pytest.raises(UserError, match=r"label 0 is 'ant' in '.*train-2.parquet' and 'cat' in"):
        open_source(str(root), input_size=None)
    write(root / "train-2.parquet", [(png(4, 3), 0)])  # without names it may be the same
    assert open_source(str(root), input_size=None).classes == ("cat", "dog")


def test_without_metadata_classes_are_numbered(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [(png(4, 3), 0)])
    write(tmp_path / "test.parquet", [(png(4, 3), 2)])
    assert open_source(str(tmp_path), input_size=None).classes == ("0", "1", "2")


@pytest.mark.parametrize("data", [b"", None, b"junk"])
def test_bad_image_names_file_row_and_path(root: Path, data: bytes | None) -> None:
    write(root / "train-00001-of-00002.parquet", [(png(4, 3), 0), (data, 0)], NAMES)
    with pytest.raises(UserError, match=r"image '1\.png' \(row 1 of 'train-00001-of"):
        open_source(str(root), input_size=None)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_refused(root: Path, label: int) -> None:
    write(root / "validation.parquet", [(png(4, 3), label), (png(4, 3), 1)], NAMES)
    with pytest.raises(UserError, match=f"has label {label}: labels must be 0 to 1"):
        open_source(str(root), input_size=None)


@pytest.mark.parametrize("metadata", [NAMES, None])
def test_labels_that_are_all_minus_one_are_none(
    root: Path, metadata: dict | None, caplog: pytest.LogCaptureFixture
) -> None:
    for path in root.glob("train*"):
        path.unlink()
    write(root / "train.parquet", [(png(4, 3), label) for label in (1, 0)], metadata)
    write(root / "validation.parquet", [(png(4, 3, colour=3), 1)], metadata)
    write(root / "test.parquet", [(png(4, 3, colour=4), -1)] * 2, metadata)
    source = open_source(str(root), input_size=None)
    assert (list(source.train.targets), list(source.test.targets)) == ([1, 0], [1])
    assert "'test' has no labels, so 'validation' is the test split" in caplog.text
    (root / "validation.parquet").unlink()
    source = open_source(str(root), input_size=None)
    assert (source.labelled, source.test.labelled, len(source.test)) == (True, False, 2)
    write(root / "train.parquet", [(png(4, 3), -1)] * 3, metadata)
    assert not open_source(str(root), input_size=None).labelled


def test_a_test_split_of_its_own_is_not_read_where_another_is_given(root: Path) -> None:
    other = root / "other"
    other.mkdir()
    (root / "validation.parquet").rename(other / "val.parquet")
    (root / "test.parquet").write_bytes(b"junk")
    assert open_source(str(root), input_size=None, test=str(other)).test.targets == [1]
    with pytest.raises(UserError, match=r"test\.parquet' is not a readable Parquet file"):
        open_source(str(root), input_size=None)


def test_a_corrupt_file_is_named(root: Path) -> None:
    path = root / "validation.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"validation\.parquet' is not a readable Parquet file"):
        open_source(str(root), input_size=None)


@pytest.mark.parametrize(
    "columns",
    [
        {"img": [b""], "label": [0]},
        {"image": [b""], "label": [0]},
        {"image": [{"bytes": b"", "path": ""}], "label": [0.5]},
        {"image": [{"bytes": b"", "path": ""}], "label": pa.array([None], pa.int64())},
    ],
)
def test_other_columns_are_listed(root: Path, columns: dict) -> None:
    pq.write_table(pa.table(columns), root / "validation.parquet")
    with pytest.raises(UserError, match=r"has the columns i.*updp reads image struct"):
        open_source(str(root), input_size=None)


def test_one_split_alone_serves_as_what_it_is_named(root: Path) -> None:
    """With a test split of its own a validation split may be pruned with; files may be named."""
    (root / "alone").mkdir()
    one, alone = root / "alone/one.parquet", root / "alone"
    write(one, [(png(4, 3, colour=n), n % 2) for n in range(9)], NAMES)
    for path in (one, alone):
        split = open_source(str(path), input_size=None)
        assert (len(split.train), len(split.test)) == (8, 1)
    (root / "validation.parquet").rename(alone / "val.parquet")
    with pytest.raises(UserError, match="has a test split alone: updp needs images to prune with"):
        open_source(str(alone), input_size=None)
    source = open_source(str(alone), input_size=None, test=str(one))
    assert (len(source.train), len(source.test)) == (1, 9)


def test_class_names_in_another_order_are_the_same_classes(root: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["dog", "ant", "cat"]}}}}
    rows, path = [(png(4, 3, colour=n), n) for n in range(3)], root / "b.parquet"
    write(path, rows, {"huggingface": json.dumps(names)})
    source = open_source(str(root), input_size=None, test=str(path))
    assert source.classes == ("cat", "dog", "ant")
    assert source.test.targets == [1, 2, 0]
    write(path, rows)
    with pytest.raises(UserError, match="one names its classes and the other has numbers"):
        open_source(str(root), input_size=None, test=str(path))


def test_a_file_without_labels_is_unlabelled(root: Path) -> None:
    for path in root.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns("label"), path)
    assert not open_source(str(root), input_size=None).labelled
    write(root / "train-00001-of-00002.parquet", [(png(4, 3), 0)])
    with pytest.raises(UserError, match=r"1 of 2 images of a split of .* have no label"):
        open_source(str(root), input_size=None)


class Counted(Images):
    """Encoded images without decoding, read in the order of some groups."""

    def __init__(self, split: EncodedSplit, groups: Groups | None) -> None:
        self.encoded, self.targets, self.groups = split.images, split.targets, groups

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([len(self.encoded.read(index))]), index


def test_an_epoch_opens_each_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order over all rows opens nearly as many row groups in each step as it has images."""
    path = tmp_path / "train.parquet"
    write(path, [(bytes(20), 0)] * 2000, NAMES)
    pq.write_table(pq.read_table(path), path, row_group_size=10)
    about = pq.read_metadata(path)
    size = max(about.row_group(group).total_byte_size for group in range(200))
    monkeypatch.setattr(parquet, "_CACHE_BYTES", 20 * size)
    split = parquet.read_parquet(tmp_path, [path])
    assert split.groups is not None
    assert (len(split.groups.starts), split.groups.together) == (200, 20)
    opened: list[int] = []
    real = parquet._open
    monkeypatch.setattr(parquet, "_open", lambda file: Noting(real(file), opened))
    counts = []
    for groups in (split.groups, None):
        opened.clear()
        batches = Batches(Counted(split, groups), None, 32, seed=1, shuffle=True)
        seen = [int(index) for _, labels in batches.epoch(0) for index in labels]
        assert len(set(seen)) == len(seen) == 32 * 62
        counts.append(len(opened))
    assert counts[0] <= 200  # 3.2 a step
    assert counts[1] > 25 * 62


class Noting:
    """A Parquet file that notes which row groups are read."""

    def __init__(self, file: Any, opened: list[int]) -> None:
        self.file, self.opened = file, opened

    @property
    def metadata(self) -> Any:
        return self.file.metadata

    def iter_batches(self, rows: int, **given: Any) -> Any:
        self.opened += given["row_groups"]
        return self.file.iter_batches(rows, **given)


def test_missing_pyarrow_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"train-00000.*' needs pyarrow: pip install 'updp\[parqu"):
        open_source(str(root), input_size=None)


def test_opening_reads_labels_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read a row group at a time, and no more of them are kept than the cache takes."""
    path = root / "train-00000-of-00002.parquet"
    noise = np.random.default_rng(0).bytes(1000)
    write(path, [(noise + bytes([i]), 0) for i in range(100)], NAMES)
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    monkeypatch.setattr(parquet, "_CACHE_BYTES", 20_000)
    shard = parquet._read_shard(path)
    images = parquet.RowGroups([path], [shard])
    assert shard.rows == [7] * 14 + [2]
    assert not images._cache
    for index in (99, 0, 6, 7, 55, 98):
        assert images.read(index) == noise + bytes([index])
        assert sum(group.nbytes for group in images._cache.values()) <= 20_000
    assert images.where(55) == f"image '55.png' (row 55 of '{path.name}')"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_with_files_of_their_own(root: Path, method: str) -> None:
    path = root / "train-00001-of-00002.parquet"
    images = parquet.RowGroups([path], [parquet._read_shard(path)])
    expected = images.read(1)  # the file is open when the worker starts
    if method == "spawn":
        assert pickle.loads(pickle.dumps(images)).read(1) == expected
        return
    child = os.fork()
    if child == 0:
        os._exit(0 if images.read(1) == expected and images._process == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_files_in_a_data_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, label in (("train-0", 0), ("validation-0", 1), ("retrieval", 1)):
        write(tmp_path / "data" / f"{name}.parquet", [(png(4, 3, colour=label), label)])
    source = open_source(str(tmp_path), input_size=None)
    assert (len(source.train), list(source.test.targets)) == (1, [1])


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (json.dumps({"info": {"features": {"label": {"names": [1, None]}}}}), ("1", "None")),
        ("[" * 100_000, ("0", "1")),
        ('{"info": [1]}', ("0", "1")),
        ("\x00", ("0", "1")),
    ],
)
def test_metadata_of_another_hand_is_read_or_left(
    text: str, classes: tuple[str, ...], tmp_path: Path
) -> None:
    for name in ("train", "test"):
        rows = [(png(4, 3, colour=n), n) for n in range(2)]
        write(tmp_path / f"{name}.parquet", rows, {"huggingface": text})
    assert open_source(str(tmp_path), input_size=None).classes == classes


def write_unnamed(path: Path, data: bytes) -> None:
    """Two images whose path is no text, as in a damaged file."""
    paths = pa.array([b"a\x80.png"] * 2, pa.binary()).view(pa.string())
    image = pa.StructArray.from_arrays(
        [pa.array([data] * 2, pa.binary()), paths], ["bytes", "path"]
    )
    pq.write_table(pa.table({"image": image, "label": pa.array([0, 1])}), path)


def test_a_path_that_is_no_text_hinders_no_image(tmp_path: Path) -> None:
    """In the line of a broken image it is shown as far as it is text."""
    for name in ("train", "test"):
        write_unnamed(tmp_path / f"{name}.parquet", png(4, 3, colour=2))
    assert int(open_source(str(tmp_path), input_size=(3, 3, 4)).train[0][0].max()) == 2
    write_unnamed(tmp_path / "test.parquet", b"junk")
    with pytest.raises(UserError, match=r"^image 'a\ufffd\.png' \(row 0 of 'test.parquet'\)"):
        open_source(str(tmp_path), input_size=(3, 3, 4))
