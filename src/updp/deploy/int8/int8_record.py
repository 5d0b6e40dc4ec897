"""The record of `updp quantize`: `export/int8.json`."""

from typing import ClassVar

from pydantic import BaseModel

from updp.io.records import Record


class Int8Operator(BaseModel, extra="forbid", frozen=True):
    """The weight of one linear operator, as it was quantised."""

    name: str
    site: str = ""  # that it replaced; empty where it is the baseline's
    kind: str
    channels: int
    lowest: float  # range of a channel, which is its largest magnitude
    highest: float
    spread: float  # `highest` over `lowest`, channels of zeros left out
    noise_per_tensor: float | None  # signal over quantisation noise, dB; None: nothing is lost
    noise_per_channel: float | None


class Int8Figures(BaseModel, extra="forbid", frozen=True):
    """INT8 figures of one model. Accuracies are top-1 on the test split, in percent.

    They are None where the test images have no labels.
    """

    file: str
    top1_float: float | None
    top1_int8: float | None
    agreement: float  # percent of test images that float and INT8 put into the same class
    bytes_float: int  # of the ONNX files
    bytes_int8: int
    equalised_pairs: int  # of operators
    skips_apart: int = 0  # taken out of convolutions, into which merging had put them
    operators: list[Int8Operator]

    @property
    def loss(self) -> float:
        """Points of top-1 that INT8 costs, negative where it gains; or of agreement with float."""
        if self.top1_float is None or self.top1_int8 is None:
            return 100 - self.agreement
        return self.top1_float - self.top1_int8


class Int8(Record):
    """Both models in INT8."""

    FILE: ClassVar[str] = "export/int8.json"
    baseline: Int8Figures
    merged: Int8Figures
    images: int  # of the calibration split, which set the ranges of activations
    test_images: int
    method: str
    per_channel: bool
    equalised: bool  # both models alike, though one may have no pair of operators to equalise
    versions: dict[str, str]

    @property
    def excess(self) -> float:
        """Points that INT8 costs the merged model more than the baseline."""
        return self.merged.loss - self.baseline.loss
