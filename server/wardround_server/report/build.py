"""From a run's outcome to its report."""

from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version

from wardround_common.sites import PooledScores
from wardround_common.spec.federation import FederationSpec, FedProx
from wardround_common.types import Digest, SiteId
from wardround_common.wire.bodies import CompareBody, DescribeBody
from wardround_server.report.model import (
    AllSitesReport,
    BackboneReport,
    BytesReport,
    ExactHeadReport,
    PooledReport,
    Refusal,
    Report,
    RoundReport,
    SecondsReport,
    SetupReport,
    SiteReport,
    Traffic,
)
from wardround_server.rounds.outcome import RoundRecord, RunOutcome
from wardround_server.rounds.results import StepResult

PACKAGES = ("wardround", "flwr", "torch", "torchvision", "transformers", "timm", "peft", "numpy")
_PHASES = {
    "describe": "describe",
    "moments": "standardise",
    "gram": "exact head",
    "train": "training",
    "evaluate": "validation",
    "compare": "comparison",
}


def build_report(
    spec: FederationSpec,
    outcome: RunOutcome,
    *,
    model_sha256: Digest,
    created: str,
    pooled: PooledScores | None,
    pooled_seconds: float,
) -> Report:
    """The report of a finished run.

    Args:
        spec: the federation file.
        outcome: the run.
        model_sha256: digest of the model file.
        created: ISO 8601 date, UTC.
        pooled: what only a simulation can measure; None in deployment.
        pooled_seconds: wall time of that.
    """
    return Report(
        name=spec.federation.name,
        created=created,
        simulated=pooled is not None,
        seed=spec.federation.seed,
        model_sha256=model_sha256,
        spec_sha256=spec.digest(),
        backbone=BackboneReport(ref=spec.backbone.ref, sha256=spec.backbone.sha256),
        setup=_setup(spec, outcome),
        sites=_sites(outcome),
        all_sites=None
        if pooled is None
        else AllSitesReport(
            federated=pooled.federated,
            exact_head=pooled.exact_head,
            difference_pooled=pooled.difference,
        ),
        pooled=None
        if pooled is None or pooled.pooled is None
        else PooledReport(sites=dict(pooled.sites), all_sites=pooled.pooled),
        exact_head=_exact_head(outcome),
        rounds=[_round(record) for record in outcome.rounds],
        bytes=_bytes(outcome.steps),
        seconds=_seconds(outcome.steps, pooled_seconds),
        versions={name: found for name in PACKAGES if (found := _version(name))},
    )


def _setup(spec: FederationSpec, outcome: RunOutcome) -> SetupReport:
    bodies = [part.body for part in outcome.described.contributions.values()]
    rule = spec.aggregation
    return SetupReport(
        task=spec.task.kind,
        labels=list(spec.task.labels if spec.task.kind == "classification" else spec.task.types),
        modality=spec.data.modality,
        tuning=spec.tuning.method,
        aggregation=f"fedprox, mu = {rule.mu:g}" if isinstance(rule, FedProx) else rule.rule,
        num_parameters=outcome.state.layout.num_values,
        metric=spec.metric,
        confidence=spec.evaluation.confidence,
        resamples=spec.evaluation.bootstrap,
        row_is_subject=not all(b.has_subjects for b in bodies if isinstance(b, DescribeBody)),
    )


def _sites(outcome: RunOutcome) -> dict[str, SiteReport]:
    sites: dict[str, SiteReport] = {}
    compared = outcome.compared.contributions if outcome.compared is not None else {}
    for name, part in compared.items():
        described = outcome.described.contributions.get(SiteId(name))
        if not isinstance(part.body, CompareBody):
            continue
        tested = 0
        if described is not None and isinstance(described.body, DescribeBody):
            tested = described.body.num_test_subjects
        sites[name] = SiteReport(
            **dict(part.body.comparison),
            num_train_subjects=part.num_subjects,
            num_test_subjects=tested,
        )
    order = [*outcome.described.manifest.sites]
    return {name: sites[name] for name in order if name in sites}


def _exact_head(outcome: RunOutcome) -> ExactHeadReport | None:
    if outcome.exact_head is None:
        return None
    gram = next(step for step in outcome.steps if step.manifest.kind == "gram")
    return ExactHeadReport(
        ridge=outcome.exact_head.ridge, num_values=gram.manifest.reply_layout.num_values
    )


def _round(record: RoundRecord) -> RoundReport:
    step = record.train
    return RoundReport(
        round=record.round,
        status="abandoned" if step.abandoned else "completed",
        sites=[] if step.abandoned else sorted(step.contributions),
        missing=sorted(step.missing),
        refused=[Refusal(site=site, code=code) for site, code in sorted(step.refused)],
        late=sorted(set(step.late)),
        loss=record.loss,
        metric=record.metric,
        bytes_up=step.bytes_up,
        bytes_down=step.bytes_down,
        seconds=step.seconds,
    )


def _bytes(steps: list[StepResult]) -> BytesReport:
    up: dict[str, int] = defaultdict(int)
    down: dict[str, int] = defaultdict(int)
    for step in steps:
        phase = _PHASES[step.manifest.kind]
        up[phase] += step.bytes_up
        down[phase] += step.bytes_down
    return BytesReport(
        up=sum(up.values()),
        down=sum(down.values()),
        phases={phase: Traffic(up=up[phase], down=down[phase]) for phase in up},
    )


def _seconds(steps: list[StepResult], pooled_seconds: float) -> SecondsReport:
    phases: dict[str, float] = defaultdict(float)
    for step in steps:
        phases[_PHASES[step.manifest.kind]] += step.seconds
    if pooled_seconds > 0.0:
        phases["pooled reference"] = pooled_seconds
    return SecondsReport(total=sum(phases.values()), phases=dict(phases))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
