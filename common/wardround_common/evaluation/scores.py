"""The scores that leave a site.

They are sums over a site's held-out subjects: bounded in size and range, and free of per-row
data. A receiver that parses them with these models needs no further check.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Verdict: TypeAlias = Literal["helped", "no difference", "harmed", "not measurable"]
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
NoteCode = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Size = Annotated[int, Field(ge=0, le=100_000_000)]


class Score(BaseModel):
    """Base of all scores: strict, frozen, finite, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class MetricValue(Score):
    """A metric, or a difference of two, with its bootstrap interval.

    A percentile interval need not contain the value itself, so that is not asked.
    """

    value: float = Field(ge=-1.0, le=1.0, description="On all held-out subjects.")
    low: float = Field(ge=-1.0, le=1.0, description="Lower end of the interval.")
    high: float = Field(ge=-1.0, le=1.0, description="Upper end of the interval.")

    @field_validator("high")
    @classmethod
    def _ordered(cls, value: float, info: ValidationInfo) -> float:
        low = info.data.get("low")
        if low is not None and low > value:
            raise ValueError("low is above high")
        return value


class ReliabilityBin(Score):
    """Examples of similar confidence."""

    confidence: Share = Field(description="Mean predicted probability in the bin.")
    frequency: Share = Field(description="How often it was so.")
    count: int = Field(ge=1, le=100_000_000, description="Examples in the bin.")


class CalibrationScore(Score):
    """Whether probabilities can be taken at their word; smaller is better."""

    brier: float = Field(
        ge=0.0,
        le=2.0,
        description="Brier score: at most 1 with two classes, at most 2 with more.",
    )
    expected_error: Share = Field(description="Expected calibration error over ten bins.")


class ModelScore(Score):
    """One model on one set of held-out subjects."""

    metrics: dict[MetricName, MetricValue | None] = Field(
        max_length=16,
        description="Metric -> value and interval; null where it is undefined or there are too "
        "few subjects for an interval.",
    )
    num_subjects: Size = Field(description="Held-out subjects.")
    num_examples: Size = Field(description="Held-out examples; a subject may have several.")
    reliability: list[ReliabilityBin] | None = Field(
        None,
        max_length=20,
        description="With two classes: probability and frequency of the second; with more: "
        "probability and accuracy of the predicted class. null for entities.",
    )
    calibration: CalibrationScore | None = Field(None, description="null for entities.")

    @field_validator("metrics")
    @classmethod
    def _shares(cls, value: dict[str, MetricValue | None]) -> dict[str, MetricValue | None]:
        for name, metric in value.items():
            if metric is not None and min(metric.value, metric.low) < 0.0:
                raise ValueError(f"the metric {name!r} is negative; all metrics are in [0, 1]")
        return value


class SiteComparison(Score):
    """The models of interest on one site's held-out subjects."""

    local: ModelScore | None = Field(description="Trained on this site's data alone.")
    federated: ModelScore = Field(description="Trained by all sites together.")
    personalised: ModelScore | None = Field(
        description="The federated model after more training on this site's data."
    )
    exact_head: ModelScore | None = Field(description="The one-round exact head.")
    difference: MetricValue | None = Field(
        description="Federated minus local in the run's metric, paired over the same subjects."
    )
    difference_personalised: MetricValue | None = Field(
        description="Personalised minus local in the run's metric, paired."
    )
    verdict: Verdict = Field(
        description="helped: the interval of the difference is above 0; harmed: below 0; "
        "no difference: it includes 0; not measurable: there is no interval."
    )
    notes: list[NoteCode] = Field(
        default_factory=list, max_length=16, description="Stable codes of what a reader must know."
    )
