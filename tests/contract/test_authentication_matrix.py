"""Who asks and who answers, for each kind of step: what is not right is refused, and nothing is changed by it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.airlocks import Airlock, Asked, Counted, Hospital
from tests.policies import COORDINATOR, asked
from wardround_client.policy.control import HEADS, SiteControl
from wardround_client.worker.worker import SiteWorker
from wardround_common.crypto.signing import SigningKey
from wardround_common.errors import RefusedError
from wardround_common.types import SiteId
from wardround_common.wire.step import MAX_RECEIPT_BYTES, Receipt, StepManifest, parse
from wardround_server import admission as admission_module
from wardround_server.admission import admit

KINDS = ("describe", "moments", "gram", "train", "evaluate", "compare")
STRANGER = SigningKey(Ed25519PrivateKey.from_private_bytes(b"somebody that no policy names..."))


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def bare(manifest: StepManifest, **changed: object) -> StepManifest:
    nothing = {"head": None, "coordinator": None, "signature": None}
    return manifest.model_copy(update={**nothing, **changed})


QUESTIONS: dict[str, tuple[Callable[[StepManifest], StepManifest], str]] = {
    "tampered": (lambda m: m.model_copy(update={"seed": m.seed + 1}), "policy_signature"),
    "unsigned": (lambda m: m.model_copy(update={"signature": None}), "policy_signature"),
    "unlisted coordinator": (lambda m: asked(bare(m), STRANGER), "policy_coordinator"),
    "stale roster": (lambda m: asked(bare(m, sites=m.sites[:-1], run="e" * 16)), "other_roster"),
    "stale federation file": (
        lambda m: asked(bare(m, spec_sha256="5" * 64)),
        "other_federation_file",
    ),
    "no head": (lambda m: bare(m).signed(COORDINATOR), "policy_head"),
    "head of a shorter log": (lambda m: asked(bare(m, seed=m.seed), entries=1), "policy_history"),
}


def state_of(hospital: Hospital) -> dict[str, bytes]:
    """The worker's folder but for its audit log, in which each refusal is."""
    state = hospital.folder / "worker-state"
    return {
        str(path): path.read_bytes()
        for path in state.rglob("*")
        if path.is_file() and "audit" not in path.parts
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_that_is_not_right_is_refused_by_the_site_and_nothing_is_computed(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    counted = Counted(monkeypatch)
    with hospital.airlock() as airlock:
        honest = hospital.question(kind)
        assert airlock.ask(honest).failure == ""
        before, num_computed = state_of(hospital), len(counted.computed)
        for name, (change, code) in QUESTIONS.items():
            changed = hospital.question(kind)
            object.__setattr__(changed, "manifest", change(honest.manifest))
            assert airlock.ask(changed).failure == code, name
        assert len(counted.computed) == num_computed
        assert state_of(hospital) == before
        assert airlock.ask(honest).failure == ""


def answered(airlock: Airlock, question: Asked) -> Receipt:
    got = airlock.ask(question)
    assert got.failure == ""
    return parse(Receipt, got.receipt, max_bytes=MAX_RECEIPT_BYTES)


def code_of(manifest: StepManifest, receipt: Receipt, site: str, key: str) -> str:
    """What admission says to a receipt, before it looks at any array."""
    try:
        admit(manifest, SiteId(site), receipt.to_bytes(), None, subjects_of={}, key=key)
    except RefusedError as error:
        return error.code
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_receipt_that_is_not_right_is_refused_by_the_aggregator(
    hospital: Hospital, kind: str
) -> None:
    with hospital.airlock() as airlock:
        question = hospital.question(kind, step=4)
        receipt = answered(airlock, question)
    manifest = question.manifest
    assert receipt.head is not None
    key = receipt.head.key
    later = asked(bare(manifest, step=5))
    other_run = asked(bare(manifest, run="f" * 16))
    assert code_of(later, receipt, "a", key) == "wrong_step", "replayed"
    assert code_of(other_run, receipt, "a", key) == "wrong_run", "replayed in another run"
    changed = receipt.model_copy(update={"num_examples": receipt.num_examples + 1})
    assert code_of(manifest, changed, "a", key) == "receipt_signature"
    resigned = receipt.signed(STRANGER)
    assert code_of(manifest, resigned, "a", key) == "receipt_signature"
    unsigned = receipt.model_copy(update={"signature": None})
    assert code_of(manifest, unsigned, "a", key) == "receipt_signature"
    headless = unsigned.model_copy(update={"head": None})
    assert code_of(manifest, headless, "a", key) == "receipt_head"
    assert code_of(manifest, receipt, "a", STRANGER.public) == "site_key_changed"
    assert code_of(manifest, receipt, "b", key) == "wrong_site"
    wanted = "" if manifest.reply_layout.num_values == 0 else "update_bytes"
    assert code_of(manifest, receipt, "a", key) == wanted, "the twin: as it came, it passes"


def test_twin_without_its_checks_a_site_answers_what_was_tampered_with(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SiteControl, "admit", lambda *_: None)
    monkeypatch.setattr(SiteWorker, "check", lambda *_: None)
    with hospital.airlock() as airlock:
        for change, _ in list(QUESTIONS.values())[:4]:
            changed = hospital.question("describe")
            object.__setattr__(changed, "manifest", change(changed.manifest))
            assert airlock.ask(changed).failure == ""
    assert (hospital.folder / "worker-state" / HEADS).exists()


def test_twin_without_its_checks_the_aggregator_takes_an_unsigned_receipt(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_module, "_check_signature", lambda *_: None)
    with hospital.airlock() as airlock:
        question = hospital.question("describe")
        receipt = answered(airlock, question)
    unsigned = receipt.model_copy(update={"signature": None, "head": None})
    assert code_of(question.manifest, unsigned, "a", STRANGER.public) == ""
