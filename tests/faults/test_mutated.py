"""Files with random damage: each is read, or refused in one line; nothing else may come out."""

import io
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from tests.faults.net import Net
from updp import UserError
from updp.data import open_source
from updp.models import load_model

FILE = Path(__file__).parent / "net.py"
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)


def picture(form: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, form)
    return file.getvalue()


def parquet() -> bytes:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    image = [{"bytes": picture("PNG"), "path": f"{i}.png"} for i in range(4)]
    file = io.BytesIO()
    pq.write_table(pa.table({"image": image, "label": [0, 1, 0, 1]}), file)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i in range(4):
            for name, data in ((f"{i}.png", picture("PNG")), (f"{i}.json", b'{"label": 1}')):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def as_image(suffix: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, data: bytes) -> object:
        for split in ("train", "test"):
            (folder / split / "a").mkdir(parents=True)
            (folder / split / "a" / f"1.{suffix}").write_bytes(data)
        return open_source(str(folder), input_size=(3, 8, 8))

    return read


def as_shard(suffix: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, data: bytes) -> object:
        (folder / f"train.{suffix}").write_bytes(data)
        return open_source(str(folder), input_size=(3, 8, 8), skip_corrupt=True)

    return read


def as_weights(folder: Path, data: bytes) -> object:
    (folder / "w.safetensors").write_bytes(data)
    return load_model(f"{FILE}:Net", weights=folder / "w.safetensors")


def as_classes(folder: Path, data: bytes) -> object:
    (folder / "classes.json").write_bytes(data)
    return as_image("png")(folder, picture("PNG"))


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path, bytes], object]]] = {
    "png": (lambda: picture("PNG", "P"), as_image("png")),
    "jpeg": (lambda: picture("JPEG", "CMYK"), as_image("jpg")),
    "gif": (lambda: picture("GIF"), as_image("gif")),
    "tiff": (lambda: picture("TIFF"), as_image("tif")),
    "webp": (lambda: picture("WEBP"), as_image("webp")),
    "parquet": (parquet, as_shard("parquet")),
    "tar": (tar, as_shard("tar")),
    "safetensors": (lambda: save(Net().state_dict()), as_weights),
    "classes": (lambda: b'{"a": 0, "b": 1}', as_classes),
}

damages = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),  # place and new byte
    st.one_of(st.just(1.0), st.floats(0, 1)),  # share that is kept
)


def damaged(data: bytes, damage: tuple[list[tuple[float, int]], float]) -> bytes:
    changes, kept = damage
    changed = bytearray(data)
    for place, value in changes:
        # Squared, as the headers are at the beginning.
        changed[int(place**2 * (len(data) - 1))] = value
    return bytes(changed[: int(kept * len(data))])


def check(kind: str, examples: int) -> None:
    make, read = KINDS[kind]
    data = make()
    with tempfile.TemporaryDirectory() as folder:
        read(Path(folder), data)  # the sound file

    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(damages)
    def survives(damage: tuple[list[tuple[float, int]], float]) -> None:
        said = "read"
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
            try:
                read(Path(folder), damaged(data, damage))
            except UserError as error:
                said = str(error)
        assert len(said.splitlines()) == 1

    survives()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused(kind: str) -> None:
    check(kind, 20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_read_or_refused(kind: str) -> None:
    torch.manual_seed(0)
    check(kind, 500)
