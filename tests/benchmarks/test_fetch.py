"""Every file behind a figure has a source; what is here is compared with it."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import fetch
from benchmarks.accuracy.baselines import MINI

ROOT = Path(__file__).parents[2]
KNOWN = {entry["file"] for entry in json.loads(fetch.SOURCES.read_text())["files"]}


def test_missing_and_other_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "imagenet_val/test.parquet"
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"other")
    with pytest.raises(SystemExit) as stop:
        fetch.main(["--data", str(tmp_path)])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert f"{name}: another file" in out
    assert "weights/cifar10_resnet56.safetensors: missing" in out


def test_every_file_that_a_command_of_the_docs_names_has_a_source() -> None:
    folders = {file.split("/")[0] for file in KNOWN} | {"digits"}
    weights = {Path(file).name for file in KNOWN}
    weights |= {f"{name}.safetensors" for name in MINI}  # `train_baseline` makes them
    for page in [ROOT / "README.md", *(ROOT / "docs" / "results").glob("*.md")]:
        commands = [line for line in page.read_text().splitlines() if line.startswith("    ")]
        for word in re.findall(r"--(?:data|test) (\S+)", "\n".join(commands)):
            assert word in folders or "/" in word, f"{page.name}: {word}"
        for word in re.findall(r"--weights (\S+)", "\n".join(commands)):
            assert word in weights or word == "mine.safetensors", f"{page.name}: {word}"
