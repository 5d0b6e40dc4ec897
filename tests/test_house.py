"""The house keeps its plan: names that say one thing, and files that a reader sees whole."""

import ast
from collections import defaultdict
from pathlib import Path

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
LINES = 300


def test_no_class_name_is_used_twice() -> None:
    places = defaultdict(list)
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{file.name}:{node.lineno}")
    assert {name: at for name, at in places.items() if len(at) > 1} == {}


def test_no_source_file_is_longer_than_a_reader_holds() -> None:
    lengths = {str(file): len(file.read_text().splitlines()) for file in SOURCES}
    assert {file: length for file, length in lengths.items() if length > LINES} == {}
