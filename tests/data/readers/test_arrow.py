import json
import pickle
from pathlib import Path

import pytest

from tests.data.test_images import png
from updp.data import open_source
from updp.data.readers import arrow
from updp.errors import UserError

pa = pytest.importorskip("pyarrow")

NAMES = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})}


def save(folder: Path, shards: list[list[tuple[bytes, int]]]) -> None:
    """As `Dataset.save_to_disk` of datasets 3 does, with record batches of two rows."""
    folder.mkdir(parents=True)
    files = [f"data-{n:05}-of-{len(shards):05}.arrow" for n in range(len(shards))]
    for file, rows in zip(files, shards, strict=True):
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = [{"bytes": data, "path": f"{i}.png"} for i, (data, _) in enumerate(rows)]
        labels = pa.array([label for _, label in rows], pa.int64())
        table = pa.table({"image": pa.array(images, kind), "label": labels})
        table = table.replace_schema_metadata(NAMES)
        with (
            pa.OSFile(str(folder / file), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": file} for file in files], "_split": folder.name}
    (folder / "state.json").write_text(json.dumps(state))
    (folder.parent / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = [(png(4, 3, colour=n), n % 2) for n in range(7)]
    save(tmp_path / "train", [images[:3], images[3:6]])
    save(tmp_path / "test", [images[6:]])
    return tmp_path


def test_a_saved_data_set_is_read(root: Path) -> None:
    source = open_source(str(root), input_size=None)
    assert source.classes == ("cat", "dog")
    assert list(source.train.targets) == [0, 1, 0, 1, 0, 1]
    assert [int(source.train[i][0].max()) for i in range(6)] == list(range(6))
    assert int(source.test[0][0].max()) == 6


def test_workers_map_the_files_anew(root: Path) -> None:
    images = arrow._split(root, "train").images
    expected = [images.read(index) for index in range(6)]
    packed = pickle.dumps(images)
    assert len(packed) < 1000
    assert [pickle.loads(packed).read(index) for index in range(6)] == expected
    assert images.where(4) == "image '1.png' (row 1 of 'data-00001-of-00002.arrow')"


def test_what_is_missing_is_said(root: Path) -> None:
    (root / "train/state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json' is not as `datasets` writes it: KeyError"):
        open_source(str(root), input_size=None)
    (root / "train/state.json").unlink()
    with pytest.raises(UserError, match="has a test split alone: updp needs images to prune with"):
        open_source(str(root), input_size=None)


def test_a_data_set_saved_alone_is_a_training_split(root: Path) -> None:
    source = open_source(str(root / "train"), input_size=None, test=str(root))
    assert (len(source.train), len(source.test)) == (6, 1)
    assert source.classes == ("cat", "dog")


def test_splits_of_other_names_are_refused(root: Path, tmp_path: Path) -> None:
    (root / "train").rename(root / "labelled")
    (root / "test").rename(root / "held")
    for given in ({"test": None}, {"test": str(root)}):
        with pytest.raises(UserError, match="has none of the splits train, test, validation"):
            open_source(str(root), input_size=None, **given)
