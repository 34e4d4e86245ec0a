"""``policy.toml``: what a hospital allows, whatever anybody else asks for. It stays at the hospital.

Everything is denied that the file does not allow: a key that is left out allows nothing, or is at
its tightest. A federation can ask for less than the policy allows, and never for more.
"""

from typing import Annotated, Literal

from pydantic import Field

from wardround_common.evaluation.scores import MetricName
from wardround_common.spec.base import Count, Positive, Table
from wardround_common.types import HEX_DIGEST

TensorPattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.*]{1,200}$")]
Step = Literal["describe", "moments", "gram", "train", "evaluate", "compare"]
"""As in :mod:`wardround_common.wire.step`, which imports more than a file needs."""
BackboneDigest = Annotated[str, Field(pattern=rf"{HEX_DIGEST[:-1]}$|^none$")]
Hours = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$")]
CoordinatorKey = Annotated[str, Field(pattern=HEX_DIGEST)]


class Allow(Table):
    """What a federation may be about."""

    coordinators: tuple[CoordinatorKey, ...] = Field(
        default=(),
        description="Public keys of who may ask, as the kit brought them (coordinator.pub). A "
        "question that none of them has signed is refused.",
    )
    tasks: tuple[Literal["classification", "entities"], ...] = Field(
        default=(), description="Kinds of task."
    )
    steps: tuple[Step, ...] = Field(
        default=(),
        description="Kinds of question: describe (counts), moments and gram (sums over all training "
        "subjects), train (updates), evaluate and compare (scores on held-out subjects).",
    )
    backbones: tuple[BackboneDigest, ...] = Field(
        default=(),
        description='SHA-256 digests of pretrained models; "none" for tables, which have none.',
    )
    tensors: tuple[TensorPattern, ...] = Field(
        default=(),
        description="Names of tensors that may be exchanged in training; * stands for any "
        'characters, as in "head.*".',
    )
    metrics: tuple[MetricName, ...] = Field(
        default=(), description="Metrics that may leave, as in report.json."
    )


class PolicyLimits(Table):
    """How much, how often and when."""

    update_norm: Positive | None = Field(
        default=None,
        description="Largest L2 norm of an update that a federation may allow itself; absent: none.",
    )
    update_values: int = Field(
        default=0, ge=0, description="Largest number of values in one update."
    )
    min_subjects: Count = Field(
        default=1000, description="Fewest training subjects here: with fewer, nothing leaves."
    )
    min_sites: Count = Field(
        default=1000, description="Fewest sites in a federation's roster, this one included."
    )
    min_cell: Count = Field(
        default=1000,
        description="Scores on fewer held-out subjects do not leave, nor how many they are; nor "
        "anything about patients who differ by fewer from those of an earlier answer.",
    )
    decimals: Annotated[int, Field(ge=1, le=9)] = Field(
        default=2,
        description="Decimals of scores and losses that leave. A share of nobody or of everybody "
        "leaves as the nearest one that is neither.",
    )
    rounds_per_day: int = Field(
        default=0, ge=0, description="Most updates in a day (UTC), over all federations."
    )
    runs_per_day: int = Field(
        default=0, ge=0, description="Most runs that are answered in a day (UTC)."
    )
    hours: tuple[Hours, ...] | None = Field(
        default=None,
        description='When steps may begin, in local time, as ["20:00-24:00", "00:00-06:00"]; a span '
        "may go over midnight. Absent: at any time.",
    )


class Demands(Table):
    """What must be there before anything leaves."""

    approval: Literal["run", "none"] = Field(
        default="run",
        description='"run": somebody here approves each run before it begins '
        '(`wardround site approve`); "none": nobody needs to.',
    )
    differential_privacy: bool = Field(
        default=True, description="Refuse federations without differential privacy."
    )
    secure_sums: bool = Field(
        default=True, description="Refuse federations in which the aggregator sees single updates."
    )


class PolicySpec(Table):
    """The whole file."""

    allow: Allow = Field(default_factory=Allow, description="What a federation may be about.")
    limits: PolicyLimits = Field(
        default_factory=PolicyLimits, description="How much, how often and when."
    )
    demands: Demands = Field(
        default_factory=Demands, description="What must be there before anything leaves."
    )
    dry_run: bool = Field(
        default=False,
        description="Compute every answer, keep it in the worker's state as it would leave, and send "
        "a refusal (policy_dry_run) instead.",
    )
