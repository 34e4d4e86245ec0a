"""What ``report.json`` holds. ``docs/report.schema.json`` is generated from these models.

1. Everything that a reader of ``report.html`` sees is in here; the page computes nothing new.
2. The same run gives the same bytes, apart from ``created`` and the seconds.
3. Nothing in it is about a single patient.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround_common.errors import DataError
from wardround_common.evaluation.scores import (
    MetricName,
    MetricValue,
    ModelScore,
    NoteCode,
    SiteComparison,
)
from wardround_common.spec.base import SiteName
from wardround_common.types import HEX_DIGEST

DigestText = Annotated[str, Field(pattern=HEX_DIGEST)]
ShortText = Annotated[str, Field(max_length=300)]
Whole = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0)]


class ReportTable(BaseModel):
    """Base of all parts: strict, frozen, finite, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BackboneReport(ReportTable):
    """The shared pretrained model."""

    ref: ShortText = Field(description='As in the federation file; "none" for tables.')
    sha256: DigestText | None = Field(description="Digest of its weights; null for none.")


class SetupReport(ReportTable):
    """What was trained and how it was measured."""

    task: Literal["classification", "entities"]
    labels: list[ShortText] = Field(description="Class names, or entity types.")
    modality: Literal["tabular", "text", "image", "tokens"]
    tuning: ShortText = Field(description="Which parameters were trained.")
    aggregation: ShortText = Field(description="How updates were combined.")
    num_parameters: Whole = Field(description="Values in the trained set.")
    metric: MetricName = Field(description="The metric of the verdicts.")
    confidence: float = Field(gt=0.0, lt=1.0, description="Level of all intervals.")
    resamples: Whole = Field(description="Bootstrap resamples of subjects per interval.")
    row_is_subject: bool = Field(
        description="The data has no patient column: each row was counted as one subject."
    )


class SiteReport(SiteComparison):
    """One hospital: its models on its own held-out subjects."""

    num_train_subjects: Whole
    num_test_subjects: Whole


class PooledReport(ReportTable):
    """A model trained on all sites' data together: possible in a simulation only."""

    sites: dict[SiteName, ModelScore] = Field(description="On each site's held-out subjects.")
    all_sites: ModelScore = Field(description="On the held-out subjects of all sites together.")


class AllSitesReport(ReportTable):
    """Scores on the held-out subjects of all sites together: in a simulation only."""

    federated: ModelScore
    exact_head: ModelScore | None
    difference_pooled: MetricValue | None = Field(
        description="Federated minus pooled in the run's metric, paired over the same subjects."
    )


class ExactHeadReport(ReportTable):
    """The one-round exact head."""

    ridge: float = Field(gt=0.0, description="Its penalty, chosen or given.")
    num_values: Whole = Field(description="Numbers that each site sent for it.")


class Refusal(ReportTable):
    """A contribution that was refused at admission."""

    site: SiteName
    code: NoteCode


class RoundReport(ReportTable):
    """One round."""

    round: int = Field(ge=1)
    status: Literal["completed", "abandoned"]
    sites: list[SiteName] = Field(description="Whose updates were used.")
    missing: list[SiteName] = Field(description="Who did not reply before the deadline.")
    refused: list[Refusal] = Field(description="Whose update was refused, and why.")
    late: list[SiteName] = Field(description="Whose reply came after the deadline, unused.")
    loss: float | None = Field(description="Mean training loss over the contributing sites.")
    metric: float | None = Field(
        ge=0.0, le=1.0, description="Federated validation metric after the round."
    )
    bytes_up: Whole = Field(description="From the sites.")
    bytes_down: Whole = Field(description="To the sites.")
    seconds: Seconds


class Traffic(ReportTable):
    """Bytes moved."""

    up: Whole = Field(description="From the sites.")
    down: Whole = Field(description="To the sites.")


class BytesReport(Traffic):
    """Bytes moved in the whole run."""

    phases: dict[ShortText, Traffic] = Field(description="The same by phase of the run.")


class SecondsReport(ReportTable):
    """Wall-clock time."""

    total: Seconds
    phases: dict[ShortText, Seconds] = Field(description="The same by phase of the run.")


class Report(ReportTable):
    """The whole file."""

    format: Literal["wardround-report/1"] = "wardround-report/1"
    name: ShortText = Field(description="The federation's name.")
    created: str = Field(
        pattern=r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}:\d{2}Z)?$", description="ISO 8601 date, UTC."
    )
    simulated: bool = Field(description="All sites were played by one machine.")
    seed: Whole
    model_sha256: DigestText = Field(description="Digest of model.safetensors.")
    spec_sha256: DigestText = Field(description="Canonical digest of the federation file.")
    backbone: BackboneReport
    setup: SetupReport
    sites: dict[SiteName, SiteReport] = Field(
        description="Hospital -> its comparison; those that sent none are absent."
    )
    all_sites: AllSitesReport | None
    pooled: PooledReport | None
    exact_head: ExactHeadReport | None
    rounds: list[RoundReport]
    bytes: BytesReport
    seconds: SecondsReport
    versions: dict[ShortText, ShortText] = Field(description="Package -> version.")


def report_bytes(report: Report) -> bytes:
    """The content of ``report.json``: indented JSON, UTF-8, ending in a newline."""
    return report.model_dump_json(indent=2).encode() + b"\n"


def read_report(path: Path) -> Report:
    """Read a ``report.json``.

    Raises:
        DataError: it cannot be read or is not a report of this version.
    """
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); name the folder of a finished run",
            code="report_unreadable",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{path}: not a report of this version: {key}: {first['msg']}",
            code="report_malformed",
        ) from error
