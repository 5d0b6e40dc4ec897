"""The record of `updp quantize`: `export/int8.json`."""

from typing import ClassVar

from pydantic import AliasChoices, BaseModel, Field

from updp.io.records import Record
from updp.tasks import CLASSIFICATION, Metric


class Int8Operator(BaseModel, extra="forbid", frozen=True):
    """The weight of one linear operator, as it was quantised."""

    name: str  # module path, or the graph node's name where that is unknown
    site: str = ""  # pruned site whose form it is in; empty where it is the baseline's
    kind: str  # ONNX operator, and the groups of a grouped convolution
    channels: int  # number of output channels
    lowest: float  # smallest range of a channel, which is its largest magnitude
    highest: float  # largest range of a channel
    spread: float  # `highest` over `lowest`, channels of zeros left out
    # Ratio of signal to quantisation noise with one scale, dB; null where nothing is lost.
    signal_to_noise_per_tensor: float | None = Field(
        validation_alias=AliasChoices("signal_to_noise_per_tensor", "noise_per_tensor")
    )
    # The same with a scale for each channel.
    signal_to_noise_per_channel: float | None = Field(
        validation_alias=AliasChoices("signal_to_noise_per_channel", "noise_per_channel")
    )


class Int8Figures(BaseModel, extra="forbid", frozen=True):
    """INT8 figures of one model, on the test split."""

    file: str  # name of the INT8 file in `export`
    # Value of the metric in float32; null where the test split has no labels.
    metric_float: float | None = Field(validation_alias=AliasChoices("metric_float", "top1_float"))
    # Value of the metric in INT8; null likewise.
    metric_int8: float | None = Field(validation_alias=AliasChoices("metric_int8", "top1_int8"))
    # Value of `agreement_metric` in INT8, with the predictions in float32 as labels.
    agreement: float
    bytes_float: int  # length of the ONNX file in float32
    bytes_int8: int  # length of the ONNX file in INT8
    equalised_pairs: int  # pairs of operators whose channels were equalised
    skips_apart: int = 0  # skips taken out of convolutions, into which merging had put them
    operators: list[Int8Operator]  # weights of the linear operators, in the graph's order

    def change(self, metric: Metric) -> float:
        """Change of the metric by INT8, or without labels of agreement with float32."""
        if self.metric_float is None or self.metric_int8 is None:
            return self.agreement - 100 if metric.higher_is_better else self.agreement
        return self.metric_int8 - self.metric_float

    def loss(self, metric: Metric) -> float:
        """Loss of the metric by INT8; negative if it gains."""
        change = self.change(metric)
        return -change if metric.higher_is_better else change


class Int8(Record):
    """Both models in INT8."""

    FILE: ClassVar[str] = "export/int8.json"
    metric: Metric = CLASSIFICATION.metric  # measure of the models, such as top-1
    # Measure of a model in INT8 beside itself in float32.
    agreement_metric: Metric = CLASSIFICATION.agreement
    baseline: Int8Figures  # figures of the baseline
    merged: Int8Figures  # figures of the pruned model
    images: int  # number of calibration images, which set the ranges of activations
    test_images: int  # images of the test split, on which both were evaluated
    method: str  # how ranges were set: `percentile`, `minmax` or `entropy`
    per_channel: bool  # whether weights have a scale for each output channel
    # Whether channels were equalised across layers, in both models where they have such.
    equalised: bool
    versions: dict[str, str]  # versions of the packages that wrote and ran the files

    @property
    def beside_float(self) -> str:
        """Column heading for `agreement`, which is against float32 and not against the baseline."""
        named = self.agreement_metric.name.replace("the baseline", "float32")
        name = f"{named} beside float32" if named == self.metric.name else named
        return f"{name} {self.agreement_metric.unit}".strip()

    @property
    def excess(self) -> float:
        """Loss by INT8 of the merged model minus that of the baseline."""
        return self.merged.loss(self.metric) - self.baseline.loss(self.metric)
