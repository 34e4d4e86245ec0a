"""The learning rate over a run."""

import math

from wardround_common.spec.federation import CosineSchedule, Schedule, StepSchedule


def rate_factor(schedule: Schedule, *, round_: int, progress: float) -> float:
    """Factor on the learning rate for one step.

    Args:
        schedule: the ``[training.schedule]`` table.
        round_: the current round, from 1.
        progress: share of all local steps of the run done before this step, in [0, 1).

    Returns:
        A factor in [0, 1].
    """
    if isinstance(schedule, StepSchedule):
        return float(schedule.gamma ** ((round_ - 1) // schedule.every_rounds))
    if isinstance(schedule, CosineSchedule):
        warmup = schedule.warmup_fraction
        if progress < warmup:
            return max(progress / warmup, 0.01)
        done = (progress - warmup) / max(1.0 - warmup, 1e-9)
        return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return 1.0
