"""From the ``[tuning]`` table to its method."""

from typing import assert_never

from wardround_common.spec.federation import (
    BiasOnly,
    FullTuning,
    GradualUnfreezing,
    HeadOnly,
    LastBlocks,
    Lora,
    TuningMethod,
)
from wardround_common.tuning.base import Tuning
from wardround_common.tuning.bias import BiasTuning
from wardround_common.tuning.full import FullTuningMethod
from wardround_common.tuning.gradual import GradualTuning
from wardround_common.tuning.head import HeadTuning
from wardround_common.tuning.last_k import LastBlocksTuning
from wardround_common.tuning.lora import LoraTuning


def tuning_for(method: TuningMethod) -> Tuning:
    """The tuning method that a federation file asks for."""
    match method:
        case HeadOnly():
            return HeadTuning()
        case LastBlocks():
            return LastBlocksTuning(method)
        case GradualUnfreezing():
            return GradualTuning(method)
        case FullTuning():
            return FullTuningMethod()
        case Lora():
            return LoraTuning(method)
        case BiasOnly():
            return BiasTuning()
        case _:
            assert_never(method)
