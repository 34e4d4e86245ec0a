"""The rules of a site's policy, each a question about what a federation asks for.

1. A rule looks at the manifest and the federation file that it names, both already checked against
   each other, and never at a promise of the aggregator.
2. What a rule does not allow is refused whole, with the rule's code; nothing is trimmed to fit.
3. The code is all that the aggregator is told.
"""

import fnmatch
from collections.abc import Callable, Iterator
from datetime import datetime, time

from wardround_common.errors import WardroundError
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.policy import PolicySpec
from wardround_common.wire.step import StepManifest


class PolicyError(WardroundError):
    """The site's policy does not allow what is asked, or what would leave."""

    public = "The site's policy does not allow this."


Rule = Callable[[PolicySpec, FederationSpec, StepManifest], bool]


def require_allowed(
    policy: PolicySpec, federation: FederationSpec, manifest: StepManifest, now: datetime
) -> None:
    """Refuse a question that the policy does not allow, whatever the data.

    Args:
        policy: the site's.
        federation: the file that the manifest names.
        manifest: what is asked; it fits the file.
        now: local time.

    Raises:
        PolicyError: the first rule that is broken, as its code; ``policy_signature`` if who asks has
            not signed.
    """
    if not manifest.is_signed:
        raise PolicyError("the coordinator has not signed this question", code="policy_signature")
    for code in broken(policy, federation, manifest, now):
        raise PolicyError(f"policy.toml does not allow this question: {code}", code=code)


def broken(
    policy: PolicySpec, federation: FederationSpec, manifest: StepManifest, now: datetime
) -> Iterator[str]:
    """Codes of all rules that a question breaks, in a fixed order."""
    for code, allows in RULES.items():
        if not allows(policy, federation, manifest):
            yield code
    hours = policy.limits.hours
    if hours is not None and not any(_within(span, now.time()) for span in hours):
        yield "policy_hours"


def _coordinator(policy: PolicySpec, _: FederationSpec, manifest: StepManifest) -> bool:
    return manifest.coordinator in policy.allow.coordinators


def _task(policy: PolicySpec, federation: FederationSpec, _: StepManifest) -> bool:
    return federation.task.kind in policy.allow.tasks


def _step(policy: PolicySpec, _: FederationSpec, manifest: StepManifest) -> bool:
    return manifest.kind in policy.allow.steps


def _backbone(policy: PolicySpec, _: FederationSpec, manifest: StepManifest) -> bool:
    return (manifest.backbone_sha256 or "none") in policy.allow.backbones


def _tensors(policy: PolicySpec, _: FederationSpec, manifest: StepManifest) -> bool:
    if manifest.kind != "train":
        return (
            True  # sums have the shape of the model's inputs, and a rule of their own: allow.steps
        )
    names = [tensor.name for tensor in manifest.reply_layout.tensors]
    return all(any(fnmatch.fnmatchcase(name, p) for p in policy.allow.tensors) for name in names)


def _values(policy: PolicySpec, _: FederationSpec, manifest: StepManifest) -> bool:
    return manifest.kind != "train" or (
        manifest.reply_layout.num_values <= policy.limits.update_values
    )


def _update_norm(policy: PolicySpec, _: FederationSpec, manifest: StepManifest) -> bool:
    largest = policy.limits.update_norm
    return manifest.kind != "train" or (largest is not None and manifest.update_norm <= largest)


def _sites(policy: PolicySpec, _: FederationSpec, manifest: StepManifest) -> bool:
    return len(manifest.sites) >= policy.limits.min_sites


def _metrics(policy: PolicySpec, federation: FederationSpec, manifest: StepManifest) -> bool:
    return manifest.kind not in {"evaluate", "compare"} or (
        federation.metric in policy.allow.metrics
    )


def _differential_privacy(policy: PolicySpec, _: FederationSpec, __: StepManifest) -> bool:
    return not policy.demands.differential_privacy  # no federation file can promise it yet


def _secure_sums(policy: PolicySpec, _: FederationSpec, __: StepManifest) -> bool:
    return not policy.demands.secure_sums  # likewise


RULES: dict[str, Rule] = {
    "policy_coordinator": _coordinator,
    "policy_task": _task,
    "policy_step": _step,
    "policy_backbone": _backbone,
    "policy_tensors": _tensors,
    "policy_values": _values,
    "policy_update_norm": _update_norm,
    "policy_sites": _sites,
    "policy_metrics": _metrics,
    "policy_differential_privacy": _differential_privacy,
    "policy_secure_sums": _secure_sums,
}


def _within(span: str, now: time) -> bool:
    """Whether a time of day is in a span such as ``20:00-06:00``; its end is not."""
    first, _, last = span.partition("-")
    minute = now.hour * 60 + now.minute
    start, end = _minutes(first), _minutes(last)
    return start <= minute < end if start < end else minute >= start or minute < end


def _minutes(text: str) -> int:
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes)
