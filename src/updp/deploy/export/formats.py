"""Export formats by name."""

from collections.abc import Iterable

from updp.deploy.export.base import Format
from updp.deploy.export.onnx import Onnx
from updp.deploy.export.openvino import OpenVino
from updp.deploy.export.pt2 import Pt2
from updp.deploy.export.safetensors import Safetensors
from updp.errors import UserError

FORMATS: dict[str, Format] = {f.name: f for f in (Onnx(), Pt2(), Safetensors(), OpenVino())}
ALL = "all"


def parse_formats(asked: str | Iterable[str]) -> list[Format]:
    """Parse names of formats, several separated by commas, or `all`; each once, in order.

    Raises UserError for an unknown name, or for a format whose package is missing.
    """
    texts = [asked] if isinstance(asked, str) else list(asked)
    names: list[str] = []
    for name in (part.strip() for text in texts for part in text.split(",")):
        if name != ALL and name not in FORMATS:
            raise UserError(
                f"--to {name!r} is no format: give {', '.join(FORMATS)}, several with commas, "
                f"or {ALL}"
            )
        names += FORMATS if name == ALL else [name]
    if not names:
        raise UserError(f"--to is empty: give {', '.join(FORMATS)} or {ALL}")
    chosen = [FORMATS[name] for name in dict.fromkeys(names)]
    for form in chosen:
        form.check()
    return chosen
