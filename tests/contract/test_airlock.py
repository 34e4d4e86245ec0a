"""The airlock over a real Unix socket: what is answered, and what is refused."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.airlocks import Airlock, Asked, Counted, Hospital, got
from tests.policies import policy
from wardround_client.airlock import airlock_pb2_grpc, service
from wardround_client.airlock.airlock_pb2 import StatusRequest
from wardround_client.airlock.client import AirlockUnavailable
from wardround_client.airlock.limits import address
from wardround_client.policy.disclosure import disclosed
from wardround_client.worker.answers import Stored
from wardround_client.worker.worker import SiteWorker
from wardround_common.errors import WireError
from wardround_common.rpc.frames import chunk_frames, head_frame, pieces
from wardround_common.rpc.frames_pb2 import Frame
from wardround_common.types import sha256_hex
from wardround_common.wire.step import MAX_MANIFEST_BYTES, MAX_RECEIPT_BYTES, Receipt, parse

KINDS = ("describe", "moments", "gram", "train", "evaluate", "compare")


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


@pytest.fixture
def airlock(hospital: Hospital) -> Iterator[Airlock]:
    with hospital.airlock() as airlock:
        yield airlock


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted = Counted(monkeypatch)
    yield counted
    counted.go.set()


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_over_the_socket_is_the_workers_own(airlock: Airlock, kind: str) -> None:
    asked = airlock.hospital.question(kind)
    answer = airlock.ask(asked)
    receipt, update = airlock.hospital.world.execute("a", asked.manifest)
    told = parse(Receipt, answer.receipt, max_bytes=MAX_RECEIPT_BYTES)
    assert answer.failure == ""
    own: dict[str, Any] = {"seconds": {}, "head": None, "signature": None}
    assert told.is_signed
    left = disclosed(receipt, policy())
    assert told.model_copy(update=own) == left.model_copy(update={"seconds": {}})
    assert answer.array == (b"" if update is None else update.tobytes())


def test_the_same_question_has_the_same_bytes_and_is_computed_once(
    hospital: Hospital, counted: Counted
) -> None:
    asked = hospital.question()
    with hospital.airlock() as airlock:
        first, second = airlock.ask(asked), airlock.ask(asked)
    with hospital.airlock() as airlock:
        restarted = airlock.ask(asked)
    assert first == second == restarted
    assert first.array
    assert counted.computed == [asked.manifest.digest()]


def test_a_stored_answer_is_given_without_the_array_being_sent(
    airlock: Airlock, counted: Counted
) -> None:
    asked = airlock.hospital.question()
    first = airlock.ask(asked)
    size = asked.array.nbytes
    again = airlock.client.execute(asked.document, (), size, deadline_s=10.0)
    assert got(again) == first
    other = airlock.hospital.question(round_=2)
    missing = airlock.client.execute(other.document, (), size, deadline_s=10.0)
    assert missing.failure == "frames_bytes", "the failing twin: nothing is stored for it"
    assert len(counted.computed) == 1


def test_a_question_of_a_step_whose_answer_was_deleted_is_refused_and_not_computed(
    airlock: Airlock, counted: Counted
) -> None:
    for step in range(3):
        assert not airlock.ask(airlock.hospital.question(round_=step + 1, step=step)).failure
    again = airlock.ask(airlock.hospital.question(round_=1, step=0))
    assert (again.failure, again.receipt) == ("answer_forgotten", b"")
    assert len(counted.computed) == 3


def test_a_large_array_goes_both_ways_in_chunks(
    airlock: Airlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = airlock.hospital.question()
    values = np.linspace(0.0, 1e-3, 2_500_000, dtype=np.float32)
    sent = values[::-1].copy()
    rows = (("rows", "float32", (len(values),)),)
    manifest = asked.manifest.model_copy(update={"state": rows, "reply": rows})
    received: list[np.ndarray] = []
    receipt, _ = airlock.hospital.world.execute("a", asked.manifest)

    def execute(worker: SiteWorker, manifest: Any, state: Any) -> tuple[Any, Any]:
        received.append(state.copy())
        fields = {"manifest_sha256": manifest.digest(), "tensors": manifest.reply}
        fields["update_sha256"] = sha256_hex(sent.tobytes())
        return receipt.model_copy(update=fields), sent

    monkeypatch.setattr(SiteWorker, "check", lambda worker, manifest: None)
    monkeypatch.setattr(SiteWorker, "execute", execute)
    answer = airlock.ask(Asked(manifest, memoryview(values).cast("B")))
    assert answer.failure == ""
    np.testing.assert_array_equal(received[0], values)
    np.testing.assert_array_equal(answer.values, sent)


def test_coded_updates_remember_what_was_lost_over_a_restart(tmp_path: Path) -> None:
    def updates(folder: Path, *, restarts: bool) -> list[bytes]:
        coded = {"update": {"coding": "top-k", "fraction": 0.2}}
        hospital = Hospital(folder, exchange=coded)
        arrays = []
        for rounds in ([1], [2], [3]) if restarts else ([1, 2, 3],):
            with hospital.airlock() as airlock:
                for round_ in rounds:
                    asked = hospital.question(round_=round_, step=round_)
                    arrays.append(airlock.ask(asked).array)
        return arrays

    once = updates(tmp_path / "once", restarts=False)
    assert updates(tmp_path / "often", restarts=True) == once
    assert len(set(once)) == 3


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"spec_sha256": "f" * 64}, "other_federation_file"),
        ({"backbone_sha256": "f" * 64}, "other_backbone"),
        ({"sites": ("b", "c")}, "not_in_cohort"),
        ({"state": (("head.0.weight", "float32", (1 << 32,)),)}, "state_bytes"),
        ({"round": 10**12}, "other_round"),
        ({"reply": (("backbone.rows", "float32", (10_000, 4)),)}, "other_reply"),
        ({"state_sha256": "f" * 64}, "state_digest"),
    ],
)
def test_a_question_that_is_not_for_this_site_is_refused_with_a_code(
    airlock: Airlock, fields: dict[str, Any], code: str
) -> None:
    asked = airlock.hospital.question()
    other = asked.manifest.model_copy(update=fields)
    answer = airlock.ask(Asked(other, asked.array))
    assert (answer.failure, answer.receipt, answer.array) == (code, b"", b"")


def test_an_array_of_other_tensors_is_refused_with_a_code(airlock: Airlock) -> None:
    asked = airlock.hospital.question()
    (name, *form), *others = asked.manifest.state
    other = asked.manifest.model_copy(update={"state": ((f"{name}.x", *form), *others)})
    assert airlock.ask(Asked(other, asked.array)).failure == "other_state"


def frames(airlock: Airlock, *sent: Frame, timeout: float | None = 10.0) -> list[Frame]:
    """What raw frames are answered with."""
    with grpc.insecure_channel(address(airlock.hospital.socket)) as channel:
        call = airlock_pb2_grpc.AirlockStub(channel).Execute(iter(sent), timeout=timeout)
        return list(call)


@pytest.mark.parametrize("declared", [0, 1, 1 << 36])
def test_an_array_of_another_size_than_the_manifests_is_refused_before_it_is_received(
    airlock: Airlock, declared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "joined", lambda *_: pytest.fail("an array was allocated"))
    asked = airlock.hospital.question()
    (answer,) = frames(airlock, head_frame(asked.document, declared))
    assert answer.head.failure == "state_bytes"
    assert len(airlock.failures) == 1


def test_lying_frames_are_refused_with_a_code(airlock: Airlock) -> None:
    asked = airlock.hospital.question()
    size = asked.array.nbytes
    head = head_frame(asked.document, size)
    cases: list[tuple[str, list[Frame]]] = [
        ("frames_form", []),
        ("frames_form", [Frame(chunk=b"x")]),
        ("frames_form", [head, head]),
        ("frames_size", [head_frame(asked.document, (1 << 36) + 1)]),
        ("frames_bytes", [head, Frame(chunk=bytes(size - 1))]),
        ("frames_bytes", [head, Frame(chunk=bytes(size + 1))]),
        ("frames_bytes", [head, Frame(chunk=bytes(size)), Frame(chunk=b"x")]),
        ("json_malformed", [head_frame(b"no json", 0)]),
        ("message_form", [head_frame(b"{}", 0)]),
    ]
    for code, sent in cases:
        (answer,) = frames(airlock, *sent)
        assert answer.head.failure == code, sent
    honest = frames(airlock, head, *chunk_frames(pieces(asked.array)))
    assert honest[0].head.failure == ""


def test_a_call_without_a_deadline_is_refused(airlock: Airlock) -> None:
    asked = airlock.hospital.question("describe")
    (answer,) = frames(airlock, head_frame(asked.document, 0), timeout=None)
    assert answer.head.failure == "no_deadline"


@pytest.mark.parametrize("kind", ["document", "chunk"])
def test_a_message_larger_than_any_of_ours_ends_the_call(airlock: Airlock, kind: str) -> None:
    large = bytes(MAX_MANIFEST_BYTES + (1 << 17))
    frame = head_frame(large, 0) if kind == "document" else Frame(chunk=large)
    with pytest.raises(grpc.RpcError) as caught:
        frames(airlock, frame)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    with pytest.raises(WireError, match="no manifest is as large"):
        airlock.client.execute(large, deadline_s=1.0)


def test_compressed_messages_are_not_taken(airlock: Airlock) -> None:
    def call(compression: grpc.Compression) -> list[Frame]:
        asked = airlock.hospital.question("describe")
        with grpc.insecure_channel(address(airlock.hospital.socket)) as channel:
            stub = airlock_pb2_grpc.AirlockStub(channel)
            sent = iter([head_frame(asked.document, 0)])
            return list(stub.Execute(sent, timeout=10.0, compression=compression))

    with pytest.raises(grpc.RpcError) as caught:
        call(grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    assert call(grpc.Compression.NoCompression)[0].head.document


def test_metadata_that_is_too_long_or_illegal_is_refused_by_grpc_itself(airlock: Airlock) -> None:
    def code(value: str) -> str:
        with grpc.insecure_channel(address(airlock.hospital.socket)) as channel:
            stub = airlock_pb2_grpc.AirlockStub(channel)
            try:
                stub.Status(StatusRequest(), timeout=5.0, metadata=(("key", value),))
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    assert code("x" * 100_000) == "RESOURCE_EXHAUSTED"
    assert code("x\x7f") == "INTERNAL"
    assert code("x") == "OK"


def test_whatever_an_unexpected_error_says_stays_at_the_site(
    airlock: Airlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("patient-4711")

    monkeypatch.setattr(SiteWorker, "execute", fail)
    asked = airlock.hospital.question()
    sent = frames(
        airlock, head_frame(asked.document, asked.array.nbytes), Frame(chunk=bytes(asked.array))
    )
    assert [frame.head.failure for frame in sent] == ["internal_error"]
    assert b"4711" not in sent[0].SerializeToString()
    assert "patient-4711" in str(airlock.failures[0])
    status = airlock.client.status()
    assert (status.failures, status.last_failure) == (1, "internal_error")


def test_a_disk_that_fails_while_an_answer_is_read_ends_the_call_without_a_word(
    airlock: Airlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(5, "Input/output error", "/data/patient-4711")

    asked = airlock.hospital.question()
    first = airlock.ask(asked)
    with monkeypatch.context() as patched:
        patched.setattr(Stored, "opened", lambda stored: contextlib.nullcontext(Failing()))
        with pytest.raises(AirlockUnavailable) as caught:
            airlock.ask(asked)
    assert "4711" not in repr(caught.value.__cause__)
    assert airlock.ask(asked) == first


def test_an_answer_that_the_disk_refuses_is_not_released(
    airlock: Airlock, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/data/patient-4711")

    asked = airlock.hospital.question()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        refused = airlock.ask(asked)
    assert (refused.failure, refused.receipt, refused.array) == ("internal_error", b"", b"")
    released = airlock.ask(asked)
    assert released.failure == ""
    assert airlock.ask(asked) == released
    assert len(counted.computed) == 2, "nothing had left, so it was computed anew"
