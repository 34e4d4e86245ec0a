"""The gate: every kind of malformed update is refused by its own rule, and nothing else is."""

import json
import tracemalloc
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.malformed import MALFORMED, NORM
from tests.policies import asked
from tests.support import (
    RUN,
    Arrival,
    FakeSite,
    StubModel,
    edited,
    federation,
    manifest_of,
    with_update,
)
from wardround_common.audit.heads import sign_head
from wardround_common.canonical import canonical_bytes
from wardround_common.crypto.signing import SigningKey
from wardround_common.errors import RefusedError
from wardround_common.spec.exchange import Int8Update
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.codecs.decoders import Decoder
from wardround_common.wire.codecs.int8 import Int8Codec
from wardround_common.wire.layout import as_bytes
from wardround_common.wire.step import Receipt, StepManifest, layout_to_wire
from wardround_server.admission import Admitted, admit, magnitudes

MIB = 1 << 20
SUBJECTS = {SiteId("b"): 10}


def _manifest(step: int = 4, kind: str = "train") -> StepManifest:
    spec = federation()
    layout = StubModel(spec).layout(1)
    return StepManifest(
        run=RUN,
        step=step,
        kind=kind,  # type: ignore[arg-type]
        round=step - 1,
        sites=spec.federation.sites,
        spec_sha256=spec.digest(),
        backbone_sha256=None,
        state=layout_to_wire(layout),
        state_sha256="1" * 64,
        reply=layout_to_wire(layout) if kind == "train" else (),
        update_norm=NORM,
        subjects=100_000,
        bound=NORM,
        seed=3,
    )


def _arrivals() -> tuple[Arrival, list[Arrival]]:
    site = FakeSite("b")
    return site.reply(_manifest(4)), [site.reply(_manifest(3))]


def _judge(
    manifest: StepManifest, arrival: Arrival, site: str = "b", key: str | None = None
) -> Admitted:
    """What the step runner does with an arrival."""
    answer = arrival.answer(manifest.reply_layout)
    if answer.failure is not None or answer.receipt is None:
        raise RefusedError("failed", code=answer.failure or "no_receipt")
    return admit(
        manifest, SiteId(site), answer.receipt, answer.update, subjects_of=SUBJECTS, key=key
    )


def _code(manifest: StepManifest, arrival: Arrival, site: str = "b", key: str | None = None) -> str:
    with pytest.raises(RefusedError) as caught:
        _judge(manifest, arrival, site, key)
    return caught.value.code


@pytest.mark.parametrize("kind", MALFORMED)
def test_refuses_a_malformed_update_and_admits_its_unmodified_twin(kind: str) -> None:
    honest, past = _arrivals()
    admitted = _judge(_manifest(), honest)
    assert admitted.update is honest.data, "admission copies nothing"
    arrival = MALFORMED[kind].make(honest, past)
    assert arrival is not honest
    assert _code(_manifest(), arrival) == MALFORMED[kind].code


def test_there_are_more_than_thirty_kinds() -> None:
    assert len(MALFORMED) >= 30


def signed(arrival: Arrival, key: SigningKey, size: int = 7) -> Arrival:
    """The same answer with a head of the site's log, and signed, as a worker sends it."""
    head = sign_head(key, size, b"\1" * 32)
    receipt = Receipt.model_validate({**json.loads(arrival.receipt), "head": head})
    return replace(arrival, receipt=receipt.signed(key).to_bytes())


def test_a_signed_question_is_answered_by_a_receipt_signed_by_the_sites_one_key() -> None:
    manifest = asked(_manifest())
    key, other = (SigningKey(Ed25519PrivateKey.generate()) for _ in range(2))
    honest = FakeSite("b").reply(manifest)
    ours = signed(honest, key)
    admitted = _judge(manifest, ours)
    assert admitted.receipt.head is not None
    assert admitted.receipt.head.size == 7
    assert _judge(manifest, ours, key=key.public).receipt == admitted.receipt
    assert _code(manifest, honest) == "receipt_head"
    head = json.loads(ours.receipt)["head"]
    assert _code(manifest, edited(ours, head={**head, "size": 6})) == "head_signature"
    assert _code(manifest, edited(ours, head={**head, "note": "x"})) == "message_form"
    assert _code(manifest, edited(ours, num_examples=11)) == "receipt_signature"
    assert _code(manifest, edited(ours, signature="0" * 128)) == "receipt_signature"
    assert _code(manifest, signed(honest, other), key=key.public) == "site_key_changed"
    _judge(_manifest(), FakeSite("b").reply(_manifest()))  # in one process nobody signs


def test_refuses_a_site_that_is_not_in_the_cohort() -> None:
    stranger = FakeSite("stranger").reply(_manifest())
    assert _code(_manifest(), stranger, "stranger") == "not_in_cohort"


def test_refuses_one_site_in_the_name_of_another() -> None:
    honest, _ = _arrivals()
    assert _code(_manifest(), honest, "c") == "wrong_site"


def test_a_site_that_has_not_declared_its_weight_may_do_so_once() -> None:
    honest = FakeSite("c", 77).reply(_manifest())
    answer = honest.answer(_manifest().reply_layout)
    assert answer.receipt is not None
    admitted = admit(_manifest(), SiteId("c"), answer.receipt, answer.update, subjects_of=SUBJECTS)
    assert admitted.receipt.num_subjects == 77


@pytest.mark.parametrize("kind", ["describe", "evaluate", "compare"])
def test_refuses_an_array_where_none_is_wanted(kind: str) -> None:
    manifest = _manifest(kind=kind)
    honest = FakeSite("b").reply(manifest)
    assert _judge(manifest, honest).update is None
    smuggled = with_update(honest, np.ones(8, dtype=np.float32))
    assert _code(manifest, smuggled) == "update_bytes"
    empty = replace(honest, data=np.zeros(0, dtype=np.float32))
    assert _code(manifest, empty) == "update_bytes"
    assert _code(manifest, edited(honest, update_sha256="1" * 64)) == "update_digest"


def test_the_norm_limit_holds_for_training_only_and_is_met_exactly() -> None:
    honest, _ = _arrivals()
    update = np.zeros(8, dtype=np.float32)
    update[0] = NORM
    assert _judge(_manifest(), with_update(honest, update)).update is not None
    update[1] = 0.1 * NORM
    assert _code(_manifest(), with_update(honest, update)) == "update_norm"


@pytest.mark.parametrize(
    "kind",
    [
        "shape of gigabytes",
        "twenty thousand tensors",
        "receipt above one mebibyte",
        "receipt nested a hundred thousand deep",
        "weight of 400 digits",
        "array of a thousand times the size",
    ],
)
def test_a_claim_of_gigabytes_costs_no_memory(kind: str) -> None:
    honest, past = _arrivals()
    arrival = MALFORMED[kind].make(honest, past)
    manifest = _manifest()
    tracemalloc.start()
    try:
        code = _code(manifest, arrival)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert code == MALFORMED[kind].code
    limit = 8 * MIB if kind != "twenty thousand tensors" else 32 * MIB
    assert peak < limit, f"{peak / MIB:.1f} MiB"


def test_a_receipt_costs_at_most_a_hundred_times_its_size_whatever_it_holds() -> None:
    honest, _ = _arrivals()
    arrival = edited(honest, body={"x": [[]] * (MIB // 24)})
    tracemalloc.start()
    try:
        assert _code(_manifest(), arrival) == "body_form"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(arrival.receipt or b""), f"{peak / MIB:.1f} MiB"


def test_no_refusal_repeats_what_the_site_wrote() -> None:
    honest, _ = _arrivals()
    canary = "patient-4711"
    with pytest.raises(RefusedError) as caught:
        _judge(_manifest(), edited(honest, body={canary: canary}))
    assert canary not in caught.value.public_message
    assert canary not in str(caught.value)


def test_magnitudes_are_those_of_float64_beyond_one_block() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32) * 1e18
    largest, norm = magnitudes(values)
    assert largest == float(np.abs(values).max())
    assert norm == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=1e-12)


def test_a_receipt_names_exactly_one_manifest() -> None:
    manifest = _manifest()
    honest, _ = _arrivals()
    other = manifest.model_copy(update={"seed": 4})
    assert _judge(manifest, honest)
    assert _code(other, honest) == "wrong_manifest"
    assert manifest_of(manifest.to_bytes()) == manifest
    assert json.loads(honest.receipt or b"")["manifest_sha256"] == manifest.digest()


def test_an_array_without_a_digest_is_admitted_only_if_it_never_left_the_process() -> None:
    manifest = _manifest()
    honest, _ = _arrivals()
    receipt = json.loads(honest.receipt or b"")
    for digest, handed_over, code in (
        (None, True, None),
        (None, False, "update_digest"),
        ("5" * 64, True, "update_digest"),
    ):
        data = canonical_bytes({**receipt, "update_sha256": digest})
        update = honest.answer(manifest.reply_layout).update
        judged = partial(
            admit,
            manifest,
            SiteId("b"),
            data,
            update,
            subjects_of=SUBJECTS,
            handed_over=handed_over,
        )
        if code is None:
            assert judged().update is update
            continue
        with pytest.raises(RefusedError) as caught:
            judged()
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("bend", "code"),
    [
        (lambda coded: coded, None),
        (lambda coded: coded[:-1], "update_bytes"),
        (lambda coded: np.append(coded, coded[:1]), "update_bytes"),
        (lambda coded: coded.view(np.float32), "update_bytes"),
        (lambda coded: _scaled(coded, np.nan), "not_finite"),
        (lambda coded: _scaled(coded, np.inf), "not_finite"),
        (lambda coded: _scaled(coded, 1e30), "value_bound"),
        (lambda coded: _scaled(coded, NORM / 200), "update_norm"),
    ],
)
def test_a_coded_update_is_judged_by_what_it_is_decoded_as(bend: Any, code: str | None) -> None:
    manifest = _manifest()
    codec = Int8Codec(manifest.reply_layout, Int8Update(coding="int8", block=16))
    values = np.array([1, -1, 1, -1, 1, -1, 1, -1], dtype=np.float32)
    coded = bend(codec.encode(values))
    honest, _ = _arrivals()
    receipt = json.loads(honest.receipt or b"")
    data = canonical_bytes({**receipt, "update_sha256": sha256_hex(as_bytes(coded))})
    decoder = Decoder(codec, manifest.reply_layout)
    judged = partial(
        admit, manifest, SiteId("b"), data, coded, subjects_of=SUBJECTS, decoder=decoder
    )
    if code is None:
        admitted = judged()
        assert admitted.update.tolist() == values.tolist()
        assert admitted.coded is coded
        return
    with pytest.raises(RefusedError) as caught:
        judged()
    assert caught.value.code == code


def _scaled(coded: Any, scale: float) -> Any:
    bent = coded.copy()
    bent[:4].view(np.float32)[0] = scale
    return bent
