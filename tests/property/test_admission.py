"""Whatever arrives, admission ends in one of two ways: a refusal with a code, or what was asked."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import RUN, Arrival, FakeSite, StubModel, federation, with_update
from wardround_common.canonical import canonical_bytes
from wardround_common.errors import RefusedError
from wardround_common.types import SiteId
from wardround_common.wire.step import StepManifest, layout_to_wire
from wardround_server.admission import Admitted, admit

NORM, BOUND = 10.0, 8.0
FREE = {"body", "seconds", "num_examples"}
"""What a site may say differently without being another answer."""


def _manifest() -> StepManifest:
    spec = federation()
    layout = layout_to_wire(StubModel(spec).layout(1))
    return StepManifest(
        run=RUN,
        step=4,
        kind="train",
        round=3,
        sites=spec.federation.sites,
        spec_sha256=spec.digest(),
        backbone_sha256=None,
        state=layout,
        state_sha256="1" * 64,
        reply=layout,
        update_norm=NORM,
        subjects=1000,
        bound=BOUND,
        seed=3,
    )


MANIFEST = _manifest()
HONEST = FakeSite("b").reply(MANIFEST)
RECEIPT = HONEST.receipt or b""


def _judged(arrival: Arrival) -> Admitted | str:
    """What is admitted, or the refusal's code; anything else that is raised fails the test."""
    answer = arrival.answer(MANIFEST.reply_layout)
    if answer.failure is not None or answer.receipt is None:
        return answer.failure or "no_receipt"
    try:
        return admit(
            MANIFEST, SiteId("b"), answer.receipt, answer.update, subjects_of={SiteId("b"): 10}
        )
    except RefusedError as error:
        return error.code


def _unchanged(admitted: Admitted) -> None:
    """Everything that identifies and weighs the answer is as the honest site said."""
    said, honest = json.loads(admitted.received), json.loads(RECEIPT)
    assert {k: v for k, v in said.items() if k not in FREE} == {
        k: v for k, v in honest.items() if k not in FREE
    }
    assert np.isfinite(admitted.body.loss)  # type: ignore[attr-defined]
    assert admitted.receipt.num_examples >= admitted.receipt.num_subjects == 10


def test_the_honest_answer_is_admitted() -> None:
    assert isinstance(_judged(HONEST), Admitted)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(RECEIPT) - 1), st.integers(1, 255))
def test_one_changed_byte_of_the_receipt_never_changes_who_what_or_how_much(
    place: int, mask: int
) -> None:
    changed = bytearray(RECEIPT)
    changed[place] ^= mask
    judged = _judged(replace(HONEST, receipt=bytes(changed)))
    if isinstance(judged, Admitted):
        _unchanged(judged)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    assert isinstance(_judged(replace(HONEST, receipt=data)), str)


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*sorted(json.loads(RECEIPT)), "more"]), json_values)
def test_any_value_in_any_field_is_refused_or_harmless(field: str, value: Any) -> None:
    try:
        receipt = canonical_bytes({**json.loads(RECEIPT), field: value})
    except (ValueError, UnicodeEncodeError):
        return
    judged = _judged(replace(HONEST, receipt=receipt))
    if isinstance(judged, Admitted):
        assert field != "more"
        _unchanged(judged)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64))
def test_arbitrary_bytes_of_the_array_are_refused(data: bytes) -> None:
    honest = np.asarray(HONEST.data).tobytes()
    judged = _judged(replace(HONEST, data=data))
    assert (judged == "update_bytes") == (len(data) != len(honest))
    assert isinstance(judged, str) == (data != honest)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(width=32), min_size=8, max_size=8))
def test_values_are_admitted_exactly_if_finite_and_within_bound_and_norm(
    values: list[float],
) -> None:
    update = np.array(values, dtype=np.float32)
    exact = update.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        good = bool(
            np.isfinite(exact).all()
            and np.abs(exact).max() <= BOUND
            and float(np.sqrt(exact @ exact)) <= NORM
        )
    judged = _judged(with_update(HONEST, update))
    assert isinstance(judged, Admitted) == good
    if not np.isfinite(exact).all():
        assert judged == "not_finite"


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**70), 2**70))
def test_a_weight_other_than_the_declared_one_is_refused(weight: int) -> None:
    receipt = canonical_bytes({**json.loads(RECEIPT), "num_subjects": weight})
    assert isinstance(_judged(replace(HONEST, receipt=receipt)), Admitted) == (weight == 10)
