"""A manifest can never loosen a policy: whatever is asked, what passes is within it."""

import fnmatch
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tests.policies import policy
from tests.support import federation
from wardround_client.policy.rules import broken
from wardround_common.spec.policy import PolicySpec
from wardround_common.wire.step import StepManifest

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SPEC = federation()
KINDS = ("describe", "moments", "gram", "train", "evaluate", "compare")
NAMES = ("head.weight", "head.bias", "backbone.block.weight", "lora.a")


def subsets(values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True)


policies = st.builds(
    lambda steps, tensors, norm, values, sites, private, hours: policy(
        allow__steps=steps,
        allow__tensors=tensors,
        limits__update_norm=norm,
        limits__update_values=values,
        limits__min_sites=sites,
        limits__hours=hours,
        demands__differential_privacy=private,
    ),
    subsets(KINDS),
    subsets(("head.*", "*.bias", "lora.a", "*")),
    st.none() | st.floats(1e-3, 1e3),
    st.integers(0, 200),
    st.integers(1, 5),
    st.booleans(),
    st.none()
    | st.lists(st.sampled_from(["00:00-24:00", "20:00-06:00", "09:00-17:00"]), max_size=2),
)
manifests = st.builds(
    lambda kind, names, width, norm, sites: StepManifest(
        run="0" * 16,
        step=1,
        kind=kind,
        round=1,
        sites=tuple(f"s{place}" for place in range(sites)),
        spec_sha256="0" * 64,
        backbone_sha256=None,
        state_sha256="0" * 64,
        reply=tuple((name, "float32", (width,)) for name in names),
        update_norm=norm,
        subjects=10,
        bound=1.0,
        seed=1,
    ),
    st.sampled_from(KINDS),
    subsets(NAMES),
    st.integers(1, 60),
    st.floats(1e-3, 1e3),
    st.integers(1, 6),
)


def codes(rules: PolicySpec, manifest: StepManifest) -> set[str]:
    return set(broken(rules, SPEC, manifest, NOON))


@given(policies, manifests)
def test_whatever_passes_is_within_the_policy(rules: PolicySpec, manifest: StepManifest) -> None:
    if codes(rules, manifest):
        return
    assert manifest.kind in rules.allow.steps
    assert len(manifest.sites) >= rules.limits.min_sites
    assert not rules.demands.differential_privacy
    hours = rules.limits.hours
    assert hours is None or set(hours) & {"00:00-24:00", "09:00-17:00"}
    if manifest.kind == "train":
        assert rules.limits.update_norm is not None
        assert manifest.update_norm <= rules.limits.update_norm
        assert manifest.reply_layout.num_values <= rules.limits.update_values
        for tensor in manifest.reply_layout.tensors:
            assert any(fnmatch.fnmatchcase(tensor.name, each) for each in rules.allow.tensors)


@given(policies, manifests, st.floats(1.0, 10.0), st.integers(1, 3))
def test_asking_for_more_never_breaks_fewer_rules(
    rules: PolicySpec, manifest: StepManifest, factor: float, more: int
) -> None:
    greedy = manifest.model_copy(
        update={
            "update_norm": manifest.update_norm * factor,
            "reply": (*manifest.reply, ("secret", "float32", (more,))),
            "sites": manifest.sites[:1],
        }
    )
    assert codes(rules, manifest) <= codes(rules, greedy)


@given(policies, manifests)
def test_a_tighter_policy_never_breaks_fewer_rules(
    rules: PolicySpec, manifest: StepManifest
) -> None:
    limits = rules.limits.model_copy(
        update={
            "min_sites": rules.limits.min_sites + 1,
            "update_values": rules.limits.update_values // 2,
            "update_norm": None,
        }
    )
    allow = rules.allow.model_copy(update={"tensors": rules.allow.tensors[1:]})
    tighter = rules.model_copy(update={"limits": limits, "allow": allow})
    assert codes(rules, manifest) <= codes(tighter, manifest)


@given(manifests)
def test_an_empty_policy_lets_nothing_pass(manifest: StepManifest) -> None:
    assert codes(PolicySpec(), manifest)
