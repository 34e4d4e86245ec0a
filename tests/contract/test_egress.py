"""The egress guard against what computed the answer: a trainer that wants to smuggle 1 kB out.

All that is structurally closed is refused; the twin, with the guard off, lets it leave.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.airlocks import Asked, Hospital
from tests.policies import write_policy
from wardround_client.policy import control as control_module
from wardround_client.worker.worker import SiteWorker
from wardround_common.types import sha256_hex
from wardround_common.wire.layout import Packed, as_bytes
from wardround_common.wire.step import Receipt

SECRET = "Anna Meier, HIV positive. " * 40
HIDDEN = np.frombuffer(SECRET[:1024].encode(), dtype=np.uint8)


@dataclass(frozen=True)
class Made:
    """What an honest trainer made."""

    receipt: Receipt
    update: Packed


Smuggle = Callable[[Made], tuple[Receipt, Packed | None]]


def _with(made: Made, update: Packed | None, **fields: Any) -> tuple[Receipt, Packed | None]:
    digest = None if update is None else sha256_hex(as_bytes(update))
    return made.receipt.model_copy(update={"update_sha256": digest, **fields}), update


def extra_tensor(made: Made) -> tuple[Receipt, Packed | None]:
    more = np.concatenate([made.update, HIDDEN.view(made.update.dtype)])
    size = more.size - made.update.size
    return _with(made, more, tensors=(*made.receipt.tensors, ("extra", "float32", (size,))))


def longer_array(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, np.concatenate([made.update, HIDDEN.view(made.update.dtype)]))


def array_where_none_is_wanted(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, HIDDEN.view(np.float32).copy(), tensors=())


def text_as_a_name(made: Made) -> tuple[Receipt, Packed | None]:
    (name, dtype, shape), *rest = made.receipt.tensors
    return _with(made, made.update, tensors=((f"{name}.{SECRET}", dtype, shape), *rest))


def extra_number(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, body={**made.receipt.body, "hba1c": 7.2})


def text_in_the_body(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, body={**made.receipt.body, "loss": SECRET})


def number_beyond_its_range(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, body={**made.receipt.body, "num_steps": 10**15})


def text_as_a_site(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, site=SECRET[:40])


def another_site(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, site="b")


def another_question(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, manifest_sha256=sha256_hex(SECRET.encode()))


def another_step(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, step=int.from_bytes(b"Anna", "big"))


def digest_of_something_else(made: Made) -> tuple[Receipt, Packed | None]:
    return made.receipt.model_copy(
        update={"update_sha256": HIDDEN[:32].tobytes().hex()}
    ), made.update


def text_as_a_phase(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, seconds={SECRET: 1.0})


def seconds_to_the_last_bit(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, seconds={"train": 1.0 + 2.0**-40})


def subjects_beyond_the_cap(made: Made) -> tuple[Receipt, Packed | None]:
    return _with(made, made.update, num_subjects=10**9, num_examples=10**9)


def payload_of_nan(made: Made) -> tuple[Receipt, Packed | None]:
    update = made.update.copy()
    update.view(np.uint32)[:3] = 0x7FC00000 | HIDDEN[:3].astype(np.uint32)
    return _with(made, update)


def infinity(made: Made) -> tuple[Receipt, Packed | None]:
    update = made.update.copy()
    update[0] = np.inf
    return _with(made, update)


def bytes_as_huge_values(made: Made) -> tuple[Receipt, Packed | None]:
    update = made.update.copy()
    update[0] = 1e6
    return _with(made, update)


CLOSED: dict[str, tuple[Smuggle, str]] = {
    "extra tensor": (extra_tensor, "egress_tensors"),
    "longer array": (longer_array, "egress_bytes"),
    "no tensors": (array_where_none_is_wanted, "egress_tensors"),
    "tensor name": (text_as_a_name, "egress_tensors"),
    "extra metric": (extra_number, "egress_body"),
    "text in the body": (text_in_the_body, "egress_body"),
    "number out of range": (number_beyond_its_range, "egress_body"),
    "site name": (text_as_a_site, "egress_receipt"),
    "another site": (another_site, "egress_site"),
    "another question": (another_question, "egress_question"),
    "another step": (another_step, "egress_question"),
    "digest": (digest_of_something_else, "egress_digest"),
    "phase name": (text_as_a_phase, "egress_receipt"),
    "low bits of seconds": (seconds_to_the_last_bit, "egress_seconds"),
    "count of subjects": (subjects_beyond_the_cap, "egress_subjects"),
    "payload of NaN": (payload_of_nan, "egress_finite"),
    "infinity": (infinity, "egress_finite"),
    "huge value": (bytes_as_huge_values, "egress_bound"),
}


def corrupted(monkeypatch: pytest.MonkeyPatch, smuggle: Smuggle) -> None:
    """Have whatever computes answers smuggle."""
    real = SiteWorker.execute

    def execute(worker: SiteWorker, *args: Any, **kwargs: Any) -> tuple[Receipt, Packed | None]:
        receipt, update = real(worker, *args, **kwargs)
        assert update is not None
        return smuggle(Made(receipt, update))

    monkeypatch.setattr(SiteWorker, "execute", execute)


def failure(hospital: Hospital, asked: Asked) -> str:
    with hospital.airlock() as airlock:
        got = airlock.ask(asked)
        assert not (got.failure and (got.receipt or got.array))
        assert SECRET.encode()[:10] not in got.receipt or not got.failure
        return got.failure


@pytest.mark.parametrize("kind", CLOSED)
def test_what_has_another_form_never_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    hospital = Hospital(tmp_path)
    smuggle, code = CLOSED[kind]
    corrupted(monkeypatch, smuggle)
    assert failure(hospital, hospital.question()) == code
    kept = hospital.folder / "worker-state" / "runs"
    assert not any(path.is_file() for path in kept.rglob("*")), "nor is it kept to be sent again"


@pytest.mark.parametrize("kind", ["extra tensor", "extra metric", "text in the body", "infinity"])
def test_twin_without_the_guard_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    hospital = Hospital(tmp_path)
    corrupted(monkeypatch, CLOSED[kind][0])
    monkeypatch.setattr(control_module, "guard", lambda *_, **__: 0.0)
    assert failure(hospital, hospital.question()) == ""


def oversized_scale(coded: np.ndarray) -> None:
    """A block whose scale carries a payload and whose codes undo it: almost the same values."""
    coded[:4].view(np.float32)[0] *= 127.0
    codes = coded[-(coded.size - 4) :].view(np.int8)
    codes[:] = np.sign(codes)


def payload_in_a_scale(coded: np.ndarray) -> None:
    coded[:4].view(np.uint32)[0] = 0x7FC00000 | 0xABCD


def negative_scale(coded: np.ndarray) -> None:
    coded[:4].view(np.float32)[0] *= -1


def code_that_coding_never_writes(coded: np.ndarray) -> None:
    coded[4] = 0x80


def codes_behind_a_scale_of_zero(coded: np.ndarray) -> None:
    coded[:4].view(np.float32)[0] = 0.0


@pytest.mark.parametrize(
    "spoil",
    [
        oversized_scale,
        payload_in_a_scale,
        negative_scale,
        code_that_coding_never_writes,
        codes_behind_a_scale_of_zero,
    ],
)
def test_coded_blocks_have_one_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[np.ndarray], None]
) -> None:
    hospital = Hospital(tmp_path, exchange={"update": {"coding": "int8"}})
    asked = hospital.question()
    assert failure(hospital, asked) == "", "an honest one leaves"

    def smuggle(made: Made) -> tuple[Receipt, Packed | None]:
        update = made.update.copy()
        spoil(update)
        return _with(made, update)

    corrupted(monkeypatch, smuggle)
    assert failure(hospital, hospital.question(round_=2, step=5)) == "egress_coding"


def test_low_bits_are_not_closed_and_their_capacity_is_what_the_documents_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(tmp_path)
    sent: list[np.ndarray] = []

    def low_bits(made: Made) -> tuple[Receipt, Packed | None]:
        update = made.update.copy()
        bits = np.resize(np.unpackbits(HIDDEN), update.size).astype(np.uint32)
        update.view(np.uint32)[:] = (update.view(np.uint32) & ~np.uint32(1)) | bits
        sent.append(bits)
        return _with(made, update)

    corrupted(monkeypatch, low_bits)
    with hospital.airlock() as airlock:
        got = airlock.ask(hospital.question())
    assert got.failure == ""
    assert ((got.values.view(np.uint32) & 1) == sent[0]).all(), "a bit for each value, at least"


def test_an_update_longer_than_the_policy_allows_stays(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    with hospital.airlock() as airlock:
        norm = float(np.linalg.norm(airlock.ask(hospital.question()).values.astype(np.float64)))
    for factor, expected in ((0.9, "egress_norm"), (1.1, "")):
        write_policy(hospital.folder, limits__update_norm=norm * factor)
        again = {"run": f"{len(expected):016x}", "step": 5}
        asked = hospital.question(update_norm=norm * factor * 0.999, **again)
        assert failure(hospital, asked) == expected
