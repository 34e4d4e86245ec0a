"""What a site lends to training: hardware, and how it is used. None of it is asked for by others."""

from typing import Literal

from pydantic import Field, model_validator

from wardround_common.spec.base import Count, Table


class Lending(Table):
    """What a site lends to training."""

    device: str = Field(
        default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description='"cpu", "cuda" or "cuda:N".'
    )
    precision: Literal["fp32"] | None = Field(
        default=None,
        description='"fp32" computes in float32 here whatever training.precision asks. Absent: as '
        "the federation asks.",
    )
    micro_batch: Count | None = Field(
        default=None,
        description="Examples that go through the model at once: a batch is split into such parts "
        "and their gradients are added up, which takes less memory and gives the same step to "
        "float rounding. Absent: the whole batch.",
    )
    checkpointing: bool = Field(
        default=False,
        description="Recompute the blocks of the backbone in the backward pass instead of keeping "
        "what they computed: less memory, about a third more time, the same gradients.",
    )
    compile: Literal["off", "on", "auto"] = Field(
        default="off",
        description='Run the model through torch.compile: "on", or "auto" where it was measured to '
        "be faster. Needs a C++ compiler; without one training goes on uncompiled and says so.",
    )
    devices: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Processes that train on parts of each batch at the same time, one a GPU (on "
        'cpu, one a process). More than 1 needs the extra "multi-gpu".',
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Lending":
        if self.devices > 1 and ":" in self.device:
            raise ValueError(
                f'compute.device = "{self.device}" names one GPU, but compute.devices = '
                f'{self.devices}; write device = "cuda"'
            )
        if self.devices > 1 and self.compile != "off":
            raise ValueError('compute.devices above 1 goes with compute.compile = "off"')
        return self
