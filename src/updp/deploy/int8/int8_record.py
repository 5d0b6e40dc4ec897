"""What `updp quantize` found, as `export/int8.json` holds it."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from updp.io.records import Record


class Int8Operator(BaseModel):
    """One linear operator's weight, as it was quantised.

    A channel's range is its largest magnitude; `spread` is the widest over the narrowest. The
    signal-to-quantisation-noise ratios are in dB, None where nothing is lost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    site: str = ""  # that it replaced; empty where it is the baseline's
    kind: str
    channels: int
    lowest: float
    highest: float
    spread: float
    noise_per_tensor: float | None
    noise_per_channel: float | None


class Int8Figures(BaseModel):
    """One of the two models. Accuracies are top-1 on the test split, in percent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    top1_float: float
    top1_int8: float
    agreement: float  # test images, in percent, that both put into the same class
    bytes_float: int  # of the ONNX files
    bytes_int8: int
    equalised_pairs: int
    skips_apart: int = 0  # that merging had put into convolutions
    operators: list[Int8Operator]

    @property
    def loss(self) -> float:
        """Points of top-1 that INT8 costs; negative where it gains."""
        return self.top1_float - self.top1_int8


class Int8(Record):
    """Both models in INT8; `images` are those of the calibration split that set the ranges.

    `equalised` is whether channels were, in both models alike; one may have no such pairs.
    """

    FILE: ClassVar[str] = "export/int8.json"
    baseline: Int8Figures
    merged: Int8Figures
    images: int
    test_images: int
    method: str
    per_channel: bool
    equalised: bool
    versions: dict[str, str]

    @property
    def excess(self) -> float:
        """Points that INT8 costs the merged model more than the baseline."""
        return self.merged.loss - self.baseline.loss
