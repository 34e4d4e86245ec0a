"""The common shape of every table in a federation or site file."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from wardround_common.types import SITE_NAME


class Table(BaseModel):
    """A TOML table: unknown keys are refused, values are strict and never change."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )


SiteName = Annotated[str, Field(pattern=SITE_NAME)]
ColumnName = Annotated[str, Field(min_length=1, max_length=200)]
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
RateBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
OpenRate = Annotated[float, Field(gt=0.0, lt=1.0)]
OpenOrOne = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
