"""The ``[exchange]`` table: what crosses the wire, and how it is written."""

from typing import Annotated, Literal

from pydantic import Field

from wardround_common.spec.base import Count, OpenRate, Table


class Fp32Update(Table):
    """Four bytes a value, exact."""

    coding: Literal["fp32"] = Field(description="How updates are written.")


class LossyUpdate(Table):
    """A coding that loses something."""

    error_feedback: bool = Field(
        default=True,
        description="A site adds what coding lost of its last update to its next one. Costs a file "
        "as large as the update at the site.",
    )


class Bf16Update(LossyUpdate):
    """Two bytes a value."""

    coding: Literal["bf16"] = Field(description="How updates are written.")


class Int8Update(LossyUpdate):
    """About one byte a value."""

    coding: Literal["int8"] = Field(description="How updates are written.")
    block: int = Field(default=256, ge=16, le=65536, description="Values that share one scale.")


class TopKUpdate(LossyUpdate):
    """Eight bytes for each value that is kept."""

    coding: Literal["top-k"] = Field(description="How updates are written.")
    fraction: OpenRate = Field(default=0.01, description="Share of the values that are kept.")


class PowerSgdUpdate(LossyUpdate):
    """Low-rank factors of each matrix."""

    coding: Literal["powersgd"] = Field(description="How updates are written.")
    rank: Count = Field(default=4, description="Rank of the factors.")


UpdateCoding = Annotated[
    Fp32Update | Bf16Update | Int8Update | TopKUpdate | PowerSgdUpdate,
    Field(discriminator="coding"),
]


class Exchange(Table):
    """What crosses the wire beside the trainable parameters, and how updates are written."""

    batchnorm: Literal["frozen", "shared"] = Field(
        default="frozen",
        description='"frozen" keeps BatchNorm in evaluation mode with the pretrained statistics; '
        '"shared" lets them move and averages running mean and variance. Counters never travel.',
    )
    update: UpdateCoding = Field(
        default_factory=lambda: Fp32Update(coding="fp32"),
        description="How a site's update is written for the wire. Absent: fp32.",
    )

    @property
    def error_feedback(self) -> bool:
        """Whether sites remember what coding lost."""
        return isinstance(self.update, LossyUpdate) and self.update.error_feedback
