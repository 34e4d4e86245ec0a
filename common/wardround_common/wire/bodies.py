"""The numbers that a receipt carries for each kind of step.

Every number is bounded, so that means over sites are finite whatever one site claims.
"""

from typing import Annotated

from pydantic import Field

from wardround_common.evaluation.scores import SiteComparison
from wardround_common.wire.step import MAX_COUNT, StepKind, WireModel

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Loss = Annotated[float, Field(ge=-1e12, le=1e12)]


class DescribeBody(WireModel):
    """What a site says about itself before a run.

    Attributes:
        num_test_subjects: held-out subjects.
        has_subjects: whether the data names patients; if not, each row counted as one.
        findings: codes of warnings about the data, no values.
        version: the site's version of this product.
        lora_rank: its rank of LoRA adapters where it is smaller than the federation's.
    """

    num_test_subjects: Count
    has_subjects: bool
    findings: tuple[str, ...] = Field(max_length=100)
    version: str = Field(max_length=20, pattern=r"^[0-9a-z.+]+$")
    lora_rank: Annotated[int, Field(ge=1, le=256)] | None = None


class TrainBody(WireModel):
    """Mean training loss of the round's last local epoch, and the local steps taken."""

    loss: Loss
    num_steps: Count


class EvaluateBody(WireModel):
    """Federated validation at one site.

    Attributes:
        loss: mean over the validation examples; None where there are none.
        metric: None where it is undefined.
        num_validation_subjects: behind both.
        suppressed: there are too few subjects for any of the three to leave; then they are None,
            None and 0.
    """

    loss: Loss | None
    metric: float | None = Field(ge=0.0, le=1.0)
    num_validation_subjects: Count
    suppressed: bool = False


class CompareBody(WireModel):
    """Local, federated and personalised models on the site's held-out subjects."""

    comparison: SiteComparison


class SumsBody(WireModel):
    """Nothing beside the array."""


BODIES: dict[StepKind, type[WireModel]] = {
    "describe": DescribeBody,
    "moments": SumsBody,
    "gram": SumsBody,
    "train": TrainBody,
    "evaluate": EvaluateBody,
    "compare": CompareBody,
}
