"""What a run comes to, and what is read from its steps: losses, metrics, the state to compare."""

from dataclasses import dataclass, field

import numpy as np

from wardround_common import __version__
from wardround_common.exact_head import RidgeHead
from wardround_common.moments import FloatArray
from wardround_common.types import Digest, SiteId, TensorSpec
from wardround_common.wire.bodies import EvaluateBody, TrainBody
from wardround_common.wire.layout import Layout
from wardround_common.wire.step import TableMoments
from wardround_server.admission import OTHER_VERSION
from wardround_server.rounds.results import StepResult
from wardround_server.rounds.state import GlobalState, Values


@dataclass(slots=True)
class RoundRecord:
    """One training round for the report: the round, its training step and its validation."""

    round: int
    train: StepResult
    loss: float | None
    metric: float | None


@dataclass(slots=True)
class RunOutcome:
    """What a finished run leaves.

    Attributes:
        state: the final trainable set.
        model_round: the round it is from; 0 for the exact head alone.
        described: the first step.
        moments: federated moments of the numeric columns, if any.
        exact_head: the one-round exact head, if enabled.
        rounds: the training rounds.
        compared: the last step.
        steps: all steps in order.
        journal_head: digest of the run's whole history.
    """

    state: GlobalState
    described: StepResult
    model_round: int = 0
    moments: TableMoments | None = None
    exact_head: RidgeHead | None = None
    rounds: list[RoundRecord] = field(default_factory=list)
    compared: StepResult | None = None
    steps: list[StepResult] = field(default_factory=list)
    journal_head: Digest | None = None


def beside_exact_head(outcome: RunOutcome) -> tuple[Layout, Values]:
    """The final state and, after it, the exact head's tensors if there is one: what is compared."""
    state, head = outcome.state, outcome.exact_head
    if head is None:
        return state.layout, state.values
    extra = (
        TensorSpec("exact_head.weight", "float32", head.weight.shape),
        TensorSpec("exact_head.bias", "float32", head.bias.shape),
    )
    parts: list[FloatArray | Values] = [state.values, head.weight.ravel(), head.bias]
    values: Values = np.concatenate(parts, dtype=np.float32)
    return Layout((*state.layout.tensors, *extra)), values


def mean_loss(result: StepResult) -> float:
    """Mean training loss weighted by examples, in roster order."""
    parts = [
        result.contributions[SiteId(s)] for s in result.manifest.sites if s in result.contributions
    ]
    losses = [part.body.loss for part in parts if isinstance(part.body, TrainBody)]
    return float(np.average(losses, weights=[part.num_examples for part in parts]))


def mean_metric(result: StepResult) -> float | None:
    """Federated validation: the sites' metrics weighted by validation subjects."""
    pairs = []
    for site in result.manifest.sites:
        body = result.contributions[SiteId(site)].body if site in result.contributions else None
        if isinstance(body, EvaluateBody) and body.metric is not None:
            pairs.append((body.metric, body.num_validation_subjects))
    if not pairs:
        return None
    values, weights = zip(*pairs, strict=True)
    return float(np.average(values, weights=weights))


def version_words(result: StepResult) -> str:
    """What to do about sites that run another version."""
    others = sorted(site for site, code in result.refused if code == OTHER_VERSION)
    if not others:
        return ""
    return (
        f"; all must run one version, the aggregator's is {__version__}: bring {', '.join(others)} "
        f"to it (pip install wardround=={__version__}), or the aggregator to theirs"
    )
