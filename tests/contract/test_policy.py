"""The hospital's policy at the airlock: each rule refuses with its code before anything is computed.

Every rule has its twin: the same question to the same site passes where the rule allows it.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.airlocks import Asked, Counted, Hospital
from tests.policies import COORDINATOR, write_policy
from tests.policies import asked as as_asked
from wardround_client.cli import site
from wardround_client.policy import control as control_module
from wardround_client.policy.control import AUDIT, HEADS
from wardround_client.policy.heads import AggregatorHeads, heads_of
from wardround_client.policy.released import Released
from wardround_common.audit.entries import Entry
from wardround_common.audit.heads import sign_head
from wardround_common.audit.verify import verified
from wardround_common.crypto.signing import SigningKey
from wardround_common.errors import ConfigError
from wardround_common.spec.policy import Step
from wardround_common.wire.step import StepKind, StepManifest, TableMoments

RUN = "0123456789abcdef"
VIOLATIONS: dict[str, dict[str, Any]] = {
    "policy_coordinator": {"allow__coordinators": ["0" * 64]},
    "policy_task": {"allow__tasks": ["entities"]},
    "policy_step": {"allow__steps": ["describe"]},
    "policy_backbone": {"allow__backbones": ["0" * 64]},
    "policy_tensors": {"allow__tensors": ["backbone.*"]},
    "policy_values": {"limits__update_values": 3},
    "policy_update_norm": {"limits__update_norm": 99.0},
    "policy_sites": {"limits__min_sites": 4},
    "policy_subjects": {"limits__min_subjects": 100},
    "policy_rounds_per_day": {"limits__rounds_per_day": 0},
    "policy_hours": {"limits__hours": []},
    "policy_approval": {"demands__approval": "run"},
    "policy_differential_privacy": {"demands__differential_privacy": True},
    "policy_secure_sums": {"demands__secure_sums": True},
}
"""Rule -> what breaks it for a training step."""
ABSENT = {
    "policy_coordinator": "allow__coordinators",
    "policy_task": "allow__tasks",
    "policy_step": "allow__steps",
    "policy_backbone": "allow__backbones",
    "policy_tensors": "allow__tensors",
    "policy_values": "limits__update_values",
    "policy_update_norm": "limits__update_norm",
    "policy_sites": "limits__min_sites",
    "policy_subjects": "limits__min_subjects",
    "policy_rounds_per_day": "limits__rounds_per_day",
    "policy_approval": "demands__approval",
    "policy_differential_privacy": "demands__differential_privacy",
    "policy_secure_sums": "demands__secure_sums",
}
"""Rule -> the key that is left out."""


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def entries(hospital: Hospital) -> tuple[Entry, ...]:
    found = verified(hospital.folder / "worker-state" / AUDIT)
    assert found.bad is None
    return found.entries


def failure(hospital: Hospital, asked: Asked, **changes: Any) -> str:
    """What the site says to a question under a policy."""
    write_policy(hospital.folder, **changes)
    with hospital.airlock() as airlock:
        got = airlock.ask(asked)
        assert not (got.failure and (got.receipt or got.array))
        return got.failure


@pytest.mark.parametrize("code", VIOLATIONS)
def test_what_a_rule_does_not_allow_is_refused_before_anything_is_computed(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    counted, asked = Counted(monkeypatch), hospital.question()
    assert failure(hospital, asked, **VIOLATIONS[code]) == code
    assert counted.computed == []
    refusal = entries(hospital)[-1]
    assert (refusal.event, refusal.fields["code"]) == ("step_refused", code)
    assert refusal.fields["manifest_sha256"] == asked.manifest.digest()
    assert failure(hospital, asked) == "", "the same question where the rule allows it"
    assert counted.computed == [asked.manifest.digest()]


@pytest.mark.parametrize("code", ABSENT)
def test_what_a_policy_does_not_mention_is_denied(hospital: Hospital, code: str) -> None:
    assert failure(hospital, hospital.question(), **{ABSENT[code]: None}) == code


def test_scores_need_a_metric_that_may_leave(hospital: Hospital) -> None:
    asked = hospital.question("evaluate")
    assert failure(hospital, asked, allow__metrics=["auc"]) == "policy_metrics"
    assert failure(hospital, asked) == ""


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"reply": (("head.weight", "float32", (1, 4)), ("x", "float32", (9,)))}, "other_reply"),
        ({"backbone_sha256": "ab" * 32}, "policy_backbone"),
        ({"update_norm": 1e7}, "policy_update_norm"),
    ],
)
def test_an_aggregator_that_asks_for_more_gets_a_refusal_and_no_data(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], code: str
) -> None:
    counted = Counted(monkeypatch)
    assert failure(hospital, hospital.question(**fields)) == code
    assert counted.computed == []


TAMPERED: dict[str, Any] = {
    "run": "f" * 16,
    "step": 4,
    "round": 2,
    "sites": ("a", "b"),
    "update_norm": 1.0,
    "subjects": 7,
    "bound": 50.0,
    "seed": 4,
    "state_sha256": "f" * 64,
    "head": None,
    "coordinator": "0" * 64,
    "signature": "0" * 128,
}


@pytest.mark.parametrize("field", TAMPERED)
def test_a_question_that_was_changed_on_its_way_is_refused(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    counted, asked = Counted(monkeypatch), hospital.question()
    changed = asked.manifest.model_copy(update={field: TAMPERED[field]})
    object.__setattr__(asked, "manifest", changed)
    assert failure(hospital, asked) == "policy_signature"
    assert counted.computed == []


def test_a_question_that_nobody_signed_is_refused_and_so_is_a_strangers(
    hospital: Hospital,
) -> None:
    asked, stranger = hospital.question(), SigningKey(Ed25519PrivateKey.generate())
    honest = asked.manifest
    unsigned = honest.model_copy(update={"coordinator": None, "signature": None})
    object.__setattr__(asked, "manifest", unsigned)
    assert failure(hospital, asked) == "policy_signature"
    object.__setattr__(asked, "manifest", as_asked(unsigned, stranger))
    assert failure(hospital, asked) == "policy_coordinator"
    object.__setattr__(asked, "manifest", honest)
    assert failure(hospital, asked) == ""


def test_a_question_brings_the_head_of_the_coordinators_own_log(hospital: Hospital) -> None:
    asked, stranger = hospital.question(), SigningKey(Ed25519PrivateKey.generate())
    honest, foreign = asked.manifest, as_asked(asked.manifest, stranger).head
    assert honest.head is not None
    for head in (None, foreign, honest.head.model_copy(update={"size": 9})):
        changed = honest.model_copy(update={"head": head, "signature": None}).signed(COORDINATOR)
        object.__setattr__(asked, "manifest", changed)
        assert failure(hospital, asked) == "policy_head"
    object.__setattr__(asked, "manifest", honest)
    assert failure(hospital, asked) == ""


def shown(asked: Asked, entries: int) -> Asked:
    """A question that comes with a head of so many entries."""
    bare = asked.manifest.model_copy(update={"head": None, "signature": None})
    object.__setattr__(asked, "manifest", as_asked(bare, entries=entries))
    return asked


def test_an_aggregator_that_goes_back_in_its_history_is_refused(hospital: Hospital) -> None:
    forged = sign_head(COORDINATOR, 30, b"\7" * 32)
    for kind, entries, code in (
        ("describe", 30, ""),
        ("moments", 29, "policy_history"),
        ("moments", 31, ""),
        ("describe", 30, ""),
    ):
        asked = shown(hospital.question(kind, 0), entries)
        assert failure(hospital, asked) == code
    later = hospital.question("gram", 0)
    changed = later.manifest.model_copy(update={"head": forged, "signature": None})
    object.__setattr__(later, "manifest", changed.signed(COORDINATOR))
    assert failure(hospital, later) == "policy_history", "as long as one that was seen, and another"
    run = later.manifest.run
    assert sorted(heads_of(hospital.folder / "worker-state" / HEADS, run)) == [30, 31]


def test_twin_without_the_kept_heads_it_is_answered(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AggregatorHeads, "check", lambda *_: None)
    for kind, entries in (("describe", 30), ("moments", 29)):
        assert failure(hospital, shown(hospital.question(kind, 0), entries)) == ""


def test_in_a_run_each_kind_of_question_is_answered_once(hospital: Hospital) -> None:
    """Whoever may ask again, about the same patients in another way, could subtract the answers."""
    kinds = [("describe", 0), ("moments", 0), ("gram", 0), ("train", 1), ("train", 2)]
    kinds += [("evaluate", 1), ("evaluate", 2), ("compare", 3)]
    honest = [hospital.question(kind, r, step=step) for step, (kind, r) in enumerate(kinds)]
    for asked in honest:
        assert failure(hospital, asked) == ""
    for step, (kind, round_) in enumerate(kinds, start=20):
        assert failure(hospital, hospital.question(kind, round_, step=step)) == "policy_repeated"
    assert failure(hospital, honest[-1]) == "", "the very same one is no other"
    another = {"run": "e" * 16, "step": 30}
    assert failure(hospital, hospital.question("gram", 0, **another)) == ""
    asked = hospital.question("moments", 0, **another | {"step": 31})
    assert failure(hospital, asked, limits__runs_per_day=2) == ""
    third = hospital.question("gram", 0, run="d" * 16, step=32)
    assert failure(hospital, third, limits__runs_per_day=2) == "policy_runs_per_day"


def test_in_a_run_columns_are_standardised_in_one_way(hospital: Hospital) -> None:
    """Whoever chose another mean for each question could count the patients above it."""
    one, other = (TableMoments(mean=(mean, 0.0), deviation=(1.0, 1.0)) for mean in (0.0, 1e6))
    assert failure(hospital, hospital.question("gram", 0, step=1, moments=one)) == ""
    assert failure(hospital, hospital.question("train", 1, step=2, moments=one)) == ""
    changed = hospital.question("train", 2, step=3, moments=other)
    assert failure(hospital, changed) == "policy_repeated"
    assert failure(hospital, hospital.question("train", 2, step=4, moments=one)) == ""


def test_twin_without_the_count_sums_can_be_had_again_and_again(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Released, "question", lambda *_: None)
    for step in range(1, 4):
        assert failure(hospital, hospital.question("gram", 0, step=step)) == ""


def test_twin_without_a_look_at_the_signature_a_changed_question_is_answered(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepManifest, "is_signed", property(lambda manifest: True))
    asked = hospital.question()
    object.__setattr__(asked, "manifest", asked.manifest.model_copy(update={"subjects": 77}))
    assert failure(hospital, asked) == ""


def test_twin_without_the_policy_the_site_would_train_for_it(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "require_allowed", lambda *_: None)
    assert failure(hospital, hospital.question(), **VIOLATIONS["policy_tensors"]) == ""


def test_every_answer_that_leaves_is_in_the_log_each_time(hospital: Hospital) -> None:
    asked = hospital.question()
    with hospital.airlock() as airlock:
        first, again = airlock.ask(asked), airlock.ask(asked)
    assert first == again
    released = [entry for entry in entries(hospital) if entry.event == "update_released"]
    assert len(released) == 2
    for entry in released:
        assert entry.fields["update_sha256"] == json.loads(first.receipt)["update_sha256"]
        assert entry.fields["bytes_out"] == len(first.receipt) + len(first.array)
    norm = float((first.values.astype("float64") ** 2).sum() ** 0.5)
    assert released[0].fields["update_norm"] == pytest.approx(norm, rel=1e-6)


def test_updates_of_a_day_are_counted_over_restarts_and_the_same_one_once(
    hospital: Hospital,
) -> None:
    first, second = hospital.question(), hospital.question(round_=2, step=5)
    limit = {"limits__rounds_per_day": 1}
    assert failure(hospital, first, **limit) == ""
    assert failure(hospital, second, **limit) == "policy_rounds_per_day"
    assert failure(hospital, first, **limit) == "", "the same stored bytes"
    assert failure(hospital, second, limits__rounds_per_day=2) == ""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The local time, in its only item."""
    now = [datetime(2026, 1, 1, 12, tzinfo=UTC)]
    defaults = control_module.SiteControl.__init__.__defaults__
    assert defaults is not None
    _, *others = defaults
    changed = (lambda: now[0], *others)
    monkeypatch.setattr(control_module.SiteControl.__init__, "__defaults__", changed)
    return now


@pytest.mark.parametrize(
    ("hour", "minute", "failed"),
    [(19, 59, True), (20, 0, False), (23, 59, False), (0, 0, False), (5, 59, False), (6, 0, True)],
)
def test_hours_may_go_over_midnight(
    hospital: Hospital, clock: list[datetime], hour: int, minute: int, failed: bool
) -> None:
    clock[0] = datetime(2026, 1, 1, hour, minute, tzinfo=UTC)
    found = failure(hospital, hospital.question("describe", 0), limits__hours=["20:00-06:00"])
    assert found == ("policy_hours" if failed else "")


def invoke(*words: object) -> Any:
    done = CliRunner().invoke(site, [str(word) for word in words], standalone_mode=False)
    if isinstance(done.exception, ConfigError | click.UsageError):
        raise done.exception
    assert done.exception is None, done.exception
    return done


def test_a_run_waits_until_somebody_approves_it(hospital: Hospital) -> None:
    asked, rule = hospital.question(), {"demands__approval": "run"}
    with pytest.raises(ConfigError, match="no such run"):
        invoke("approve", hospital.file, RUN)
    assert failure(hospital, asked, **rule) == "policy_approval"
    (listed,) = json.loads(invoke("approve", hospital.file, "--json").output)
    assert (listed["run"], listed["approved"]) == (RUN, False)
    assert listed["request"]["task"] == "classification"
    assert listed["request"]["sites"] == ["a", "b", "c"]
    invoke("approve", hospital.file, RUN)
    assert failure(hospital, asked, **rule) == ""
    assert "run_approved" in {entry.event for entry in entries(hospital)}
    other = hospital.question(run="f" * 16)
    assert failure(hospital, other, **rule) == "policy_approval", "a run, not a federation"
    invoke("approve", hospital.file, RUN, "--revoke")
    assert failure(hospital, asked, **rule) == "policy_approval"
    with pytest.raises(click.UsageError):
        invoke("approve", hospital.file, "--revoke")


def test_an_approval_that_was_taken_back_and_given_again_is_in_the_log_again(
    hospital: Hospital,
) -> None:
    asked = hospital.question()
    write_policy(hospital.folder, demands__approval="run")
    with hospital.airlock() as airlock:
        for _ in range(2):
            assert airlock.ask(asked).failure == "policy_approval"
            invoke("approve", hospital.file, RUN)
            assert airlock.ask(asked).failure == ""
            invoke("approve", hospital.file, RUN, "--revoke")
    events = [entry.event for entry in entries(hospital)]
    assert events.count("run_approved") == 2


def test_kinds_of_question_are_those_of_the_wire() -> None:
    assert get_args(Step) == get_args(StepKind)


def test_a_dry_run_shows_what_would_leave_and_sends_nothing(hospital: Hospital) -> None:
    asked = hospital.question()
    assert failure(hospital, asked, dry_run=True) == "policy_dry_run"
    (path,) = (hospital.folder / "worker-state" / "withheld" / RUN).glob("*.json")
    receipt, array = path.read_bytes(), path.with_suffix(".array").read_bytes()
    events = [entry.event for entry in entries(hospital)]
    assert "update_withheld" in events
    assert "update_released" not in events
    write_policy(hospital.folder)
    with hospital.airlock() as airlock:
        real = airlock.ask(asked)
    assert real.array == array
    own = {"seconds": {}, "head": None, "signature": None}
    assert {**json.loads(real.receipt), **own} == {**json.loads(receipt), **own}


def test_without_a_policy_the_worker_does_not_start(hospital: Hospital) -> None:
    (hospital.folder / "policy.toml").unlink()
    with pytest.raises(ConfigError) as caught:
        hospital.desk()
    assert caught.value.code == "no_policy"
    assert "wardround site policy" in str(caught.value)


def test_a_draft_allows_what_the_federation_asks_and_is_never_replaced(hospital: Hospital) -> None:
    (hospital.folder / "policy.toml").unlink()
    invoke("policy", hospital.file, "--draft", "--approval", "none")
    done = invoke("policy", hospital.file, "--json")
    (judged,) = json.loads(done.output)
    assert all("policy_coordinator" in codes for codes in judged["refusals"].values()), "no kit"
    drafted = (hospital.folder / "policy.toml").read_text()
    signed = drafted.replace("coordinators = []", f'coordinators = ["{COORDINATOR.public}"]')
    (hospital.folder / "policy.toml").write_text(signed)
    (hospital.folder / "coordinator.pub").write_text(f"{COORDINATOR.public}\n")
    with hospital.file.open("a") as file:
        file.write('[node]\naggregator = "localhost:1"\n')
    done = invoke("policy", hospital.file, "--json")
    (judged,) = json.loads(done.output)
    assert set(judged["refusals"]) == {
        "describe",
        "moments",
        "gram",
        "train",
        "evaluate",
        "compare",
    }
    assert not any(judged["refusals"].values())
    assert done.return_value == 0
    with hospital.airlock() as airlock:
        assert airlock.ask(hospital.question()).failure == "policy_subjects", "too few for a draft"
    drafted = (hospital.folder / "policy.toml").read_text()
    (hospital.folder / "policy.toml").write_text(drafted.replace("subjects = 10", "subjects = 2"))
    with hospital.airlock() as airlock:
        assert airlock.ask(hospital.question()).failure == ""
    with pytest.raises(ConfigError) as caught:
        invoke("policy", hospital.file, "--draft")
    assert caught.value.code == "policy_there"
    write_policy(hospital.folder, limits__min_sites=9)
    assert invoke("policy", hospital.file).return_value == 1
