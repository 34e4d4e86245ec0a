"""``policy.toml`` for people: reading it, drafting one, and what each federation would meet."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from wardround_client.policy.rules import broken
from wardround_common.errors import ConfigError
from wardround_common.exact_head import sums_layout
from wardround_common.moments import moments_layout
from wardround_common.shared_model import SharedModel
from wardround_common.spec.data import TabularData
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.load import load_federation, load_policy, load_site
from wardround_common.spec.policy import PolicySpec
from wardround_common.spec.site import SiteSpec, resolve
from wardround_common.spec.words import toml_literal
from wardround_common.types import Digest
from wardround_common.wire.layout import Layout
from wardround_common.wire.step import StepKind, StepManifest, layout_to_wire

Approval = Literal["run", "none"]
_NO_RUN: Final = "0" * 16
_MIN_SUBJECTS: Final = 10
_MIN_CELL: Final = 10
_DECIMALS: Final = 3
_DAYS_ROUNDS: Final = 4
_DAYS_RUNS: Final = 6
"""A draft lets each federation be trained so many times in a day."""

DRAFT: Final = """\
# What may leave this hospital. Everything else is refused. This is a draft: it allows what the
# federation files ask for that site.toml names. `wardround explain policy` documents each key.

[allow]
coordinators = {coordinators}
tasks = {tasks}
steps = {steps}
backbones = {backbones}
tensors = {tensors}
metrics = {metrics}

[limits]
update_norm = {update_norm}
update_values = {update_values}
min_subjects = {min_subjects}
min_sites = {min_sites}
min_cell = {min_cell}
decimals = {decimals}
rounds_per_day = {rounds_per_day}
runs_per_day = {runs_per_day}

[demands]
approval = {approval}
differential_privacy = false
secure_sums = false
"""


def site_policy(site: SiteSpec, base: Path) -> PolicySpec:
    """The policy that a site file names.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    file = resolve(base, site.policy)
    if not file.exists():
        raise ConfigError(
            f"{file}: there is no policy, so nothing may leave; have one drafted by "
            "`wardround site policy SITE.toml --draft`, and read it",
            code="no_policy",
        )
    return load_policy(file)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a policy says of one federation.

    Attributes:
        name: of the federation.
        file: it.
        refusals: kind of question -> codes of the rules that it breaks, as of now.
    """

    name: str
    file: Path
    refusals: dict[str, tuple[str, ...]]


def judged(site_file: Path, now: datetime) -> list[Judged]:
    """What the policy says of each federation that a site file names.

    Raises:
        ConfigError: a file is wrong, or there is no policy.
        BackboneError: a backbone cannot be used.
    """
    site, base = load_site(site_file), site_file.resolve().parent
    policy, found = site_policy(site, base), []
    for path in site.federations:
        file = resolve(base, path)
        spec = load_federation(file)
        shared = SharedModel(spec)
        refusals = broken_rules(policy, shared, site, base, now)
        found.append(Judged(spec.federation.name, file, refusals))
    return found


def broken_rules(
    policy: PolicySpec, model: SharedModel, site: SiteSpec, base: Path, now: datetime
) -> dict[str, tuple[str, ...]]:
    """Kind of question of a federation -> codes of the rules that it breaks now.

    Args:
        policy: the site's.
        model: of the federation.
        site: the site file.
        base: its folder.
        now: local time.
    """
    spec = model.federation
    return {
        str(manifest.kind): tuple(broken(policy, spec, _asked(manifest, policy, site, base), now))
        for manifest in questions(spec, model)
    }


def draft(site_file: Path, approval: Approval) -> Path:
    """Write a policy that allows what the site's federations ask for, and nothing else.

    Args:
        site_file: ``site.toml``.
        approval: see ``demands.approval``.

    Returns:
        The file.

    Raises:
        ConfigError: there is a policy already (``policy_there``), or a file is wrong.
        BackboneError: a backbone cannot be used.
    """
    site, base = load_site(site_file), site_file.resolve().parent
    file = resolve(base, site.policy)
    if file.exists():
        raise ConfigError(f"{file}: is there already, and is not replaced", code="policy_there")
    specs = [load_federation(resolve(base, path)) for path in site.federations]
    models = [SharedModel(spec) for spec in specs]
    asked = [q for spec, model in zip(specs, models, strict=True) for q in questions(spec, model)]
    layouts = [question.reply_layout for question in asked if question.kind == "train"]
    words: dict[str, object] = {
        "coordinators": _visible_coordinators(site, base),
        "tasks": sorted({spec.task.kind for spec in specs}),
        "steps": list(dict.fromkeys(question.kind for question in asked)),
        "backbones": sorted({model.backbone_digest or "none" for model in models}),
        "tensors": sorted({_pattern(t.name) for layout in layouts for t in layout.tensors}),
        "metrics": sorted({metric for model in models for metric in model.task.metrics}),
        "update_norm": max((spec.limits.update_norm for spec in specs), default=1.0),
        "update_values": max((layout.num_values for layout in layouts), default=0),
        "min_subjects": _MIN_SUBJECTS,
        "min_sites": min((len(spec.federation.sites) for spec in specs), default=2),
        "min_cell": _MIN_CELL,
        "decimals": _DECIMALS,
        "rounds_per_day": _DAYS_ROUNDS * sum(spec.rounds.count for spec in specs),
        "runs_per_day": _DAYS_RUNS * len(specs),
        "approval": approval,
    }
    file.write_text(DRAFT.format(**{key: toml_literal(value) for key, value in words.items()}))
    return file


def _coordinators(site: SiteSpec, base: Path) -> list[str]:
    """The key that the kit brought; none before there is a kit.

    Raises:
        PermissionError: it is not this user's to see.
    """
    path = None if site.node is None else resolve(base, site.node.coordinator)
    return [path.read_text().strip()] if path is not None and path.exists() else []


def _visible_coordinators(site: SiteSpec, base: Path) -> list[str]:
    """For a draft, in which whoever drafts it has to name a key that is not to be seen."""
    try:
        return _coordinators(site, base)
    except PermissionError:
        return []


def _asked(manifest: StepManifest, policy: PolicySpec, site: SiteSpec, base: Path) -> StepManifest:
    """The question as the coordinator of the kit would ask it, or the one that the policy names."""
    try:
        keys = _coordinators(site, base)
    except PermissionError:
        keys = list(policy.allow.coordinators)
    key = next(iter(keys), None)
    return manifest.model_copy(update={"coordinator": key})


def _pattern(name: str) -> str:
    """All tensors of the same part: ``head.*`` for ``head.weight``."""
    part, dot, _ = name.partition(".")
    return f"{part}{dot}*" if dot else name


def questions(spec: FederationSpec, model: SharedModel) -> Iterator[StepManifest]:
    """One question of each kind that a run of this federation asks."""
    last = max(spec.rounds.count, 1)
    yield _question(spec, model, "describe", 0, Layout(()))
    data = spec.data
    if isinstance(data, TabularData) and data.standardise == "federated" and data.numeric:
        yield _question(spec, model, "moments", 0, moments_layout(len(data.numeric)))
    if spec.exact_head.enabled:
        folds = spec.exact_head.folds if spec.exact_head.ridge == "auto" else 1
        sums = sums_layout(model.feature_dim, model.task.num_outputs, folds)
        yield _question(spec, model, "gram", 0, sums)
    if spec.rounds.count:
        yield _question(spec, model, "train", last, model.layout(last))
    if spec.rounds.count and data.validation_fraction > 0.0:
        yield _question(spec, model, "evaluate", last, Layout(()))
    yield _question(spec, model, "compare", last, Layout(()))


def _question(
    spec: FederationSpec, model: SharedModel, kind: StepKind, round_: int, reply: Layout
) -> StepManifest:
    return StepManifest(
        run=_NO_RUN,
        step=0,
        kind=kind,
        round=round_,
        sites=spec.federation.sites,
        spec_sha256=spec.digest(),
        backbone_sha256=model.backbone_digest,
        state_sha256=Digest("0" * 64),
        reply=layout_to_wire(reply),
        update_norm=spec.limits.update_norm,
        subjects=spec.limits.subjects,
        bound=1.0,
        seed=spec.federation.seed,
    )
