"""The record of `updp quantize`: `export/int8.json`."""

from typing import ClassVar

from pydantic import AliasChoices, BaseModel, Field

from updp.io.records import Record
from updp.tasks import CLASSIFICATION, Metric


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
    """INT8 figures of one model, on the test split; metrics are None where that has no labels."""

    file: str
    metric_float: float | None = Field(validation_alias=AliasChoices("metric_float", "top1_float"))
    metric_int8: float | None = Field(validation_alias=AliasChoices("metric_int8", "top1_int8"))
    agreement: float  # the metric of INT8 beside float's predictions
    bytes_float: int  # of the ONNX files
    bytes_int8: int
    equalised_pairs: int  # of operators
    skips_apart: int = 0  # taken out of convolutions, into which merging had put them
    operators: list[Int8Operator]

    def loss(self, metric: Metric) -> float:
        """Loss of the metric by INT8, negative where it gains; or of agreement with float."""
        if self.metric_float is None or self.metric_int8 is None:
            return 100 - self.agreement if metric.higher_is_better else self.agreement
        apart = self.metric_float - self.metric_int8
        return apart if metric.higher_is_better else -apart


class Int8(Record):
    """Both models in INT8."""

    FILE: ClassVar[str] = "export/int8.json"
    metric: Metric = CLASSIFICATION.metric
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
        """Loss by INT8 of the merged model beyond the baseline's."""
        return self.merged.loss(self.metric) - self.baseline.loss(self.metric)
