"""What a federation file asks for, in plain words, before anything runs."""

from typing import Final, TypedDict

from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.words import toml_literal

_TRAINED: Final = {
    "head": "the head",
    "last-k": "the head and the last {blocks} block(s)",
    "gradual": "the head, and one more block at each of rounds {unfreeze_at}",
    "full": "the head and every parameter of the backbone",
    "lora": "the head and LoRA adapters of rank {rank} on {targets}",
    "bias": "the head and the biases of the backbone",
}


class Summary(TypedDict):
    """The answer of ``wardround validate --json``."""

    ok: bool
    name: str
    sites: list[str]
    quorum_sites: int
    data: str
    task: str
    labels: list[str]
    backbone: str
    trained: str
    aggregation: str
    rounds: int
    metric: str
    wire: list[str]
    simulation: str | None
    spec_sha256: str


def summarise(spec: FederationSpec) -> Summary:
    """The summary of a valid federation file."""
    simulation = spec.simulation
    return Summary(
        ok=True,
        name=spec.federation.name,
        sites=list(spec.federation.sites),
        quorum_sites=spec.quorum_sites,
        data=spec.data.modality,
        task=spec.task.kind,
        labels=list(spec.task.labels),
        backbone=spec.backbone.ref,
        trained=_trained(spec),
        aggregation=spec.aggregation.rule,
        rounds=spec.rounds.count,
        metric=spec.metric,
        wire=_wire(spec),
        simulation=None
        if simulation is None
        else f"{simulation.dataset}, {simulation.partition.kind} partition",
        spec_sha256=spec.digest(),
    )


def _trained(spec: FederationSpec) -> str:
    """What the rounds train."""
    if spec.rounds.count == 0:
        return "nothing in rounds; the one-round exact head only"
    values = {
        name: ", ".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in spec.tuning.model_dump().items()
    }
    return _TRAINED[spec.tuning.method].format(**values)


def _wire(spec: FederationSpec) -> list[str]:
    """Everything that leaves a site, one line each."""
    lines = ["once: numbers of subjects and codes of warnings about the data"]
    if spec.data.modality == "tabular" and spec.data.standardise == "federated":
        lines.append("once: count, sum and sum of squares of each numeric column")
    if spec.exact_head.enabled:
        lines.append("once: the Gram matrix and feature-target products of the exact head")
    if spec.rounds.count > 0:
        lines.append(f"each round: the change of {_trained(spec)}, the training loss")
        if spec.exchange.batchnorm == "shared":
            lines.append("each round: running mean and variance of BatchNorm layers")
        if spec.data.validation_fraction > 0:
            lines.append("after rounds: loss and metric on the validation subjects")
    lines.append("at the end: metrics, intervals and calibration on the held-out subjects")
    return lines


def summary_text(summary: Summary) -> str:
    """The summary for a terminal."""
    sites = summary["sites"]
    rows = {
        "federation": summary["name"],
        "sites": f"{len(sites)}: {_listed(sites)} (a round needs {summary['quorum_sites']})",
        "data": summary["data"],
        "task": f"{summary['task']}: {_listed(summary['labels'])}",
        "backbone": summary["backbone"],
        "trained": summary["trained"],
        "rounds": f"{summary['rounds']}, {summary['aggregation']}, judged by {summary['metric']}",
        "leaves a site": "\n".join(summary["wire"]),
        "simulation": summary["simulation"] or "not described in this file",
        "spec sha256": summary["spec_sha256"],
    }
    return "\n".join(
        f"{name if first else '':<14} {line}"
        for name, text in rows.items()
        for first, line in _numbered(text)
    )


def _listed(names: list[str], most: int = 8) -> str:
    shown = ", ".join(name if name.isprintable() else toml_literal(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _numbered(text: str) -> list[tuple[bool, str]]:
    return [(index == 0, line) for index, line in enumerate(text.splitlines())]
