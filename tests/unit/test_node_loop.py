"""The node's loop: order, patience with the worker, runs that end, invitations, what is malformed."""

import io
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message

from tests.support import RUN
from wardround_client.airlock.airlock_pb2 import WorkerStatus
from wardround_client.airlock.client import AirlockAnswer, AirlockUnavailable
from wardround_client.node.fleet_api import GoneError
from wardround_client.node.messages import Pulled
from wardround_client.node.node import SiteNode
from wardround_client.node.traffic import Traffic
from wardround_common.errors import RoundError, WireError
from wardround_common.log import set_log_stream
from wardround_common.rpc.frames import pieces
from wardround_common.wire.flower import bytes_of, failure_of, json_of, to_content_bytes
from wardround_common.wire.session import SESSION_TYPE, SessionInvite
from wardround_common.wire.step import StepManifest

WAIT_S = 5.0


def pulled(
    document: bytes = b"{}",
    array: bytes = b"",
    *,
    kind: str = "train",
    run_id: int = 7,
    content: RecordDict | None = None,
    seconds: float = 60.0,
) -> Pulled:
    now = time.time()
    head = Metadata(run_id, "m" * 64, 1, 2, "", "", now, seconds, kind)
    whole = content if content is not None else to_content_bytes(document, memoryview(array))
    return Pulled(make_message(head, whole), now + seconds)


class Line:
    """The connection: hands over what is queued, remembers what is pushed, ends when all is done."""

    def __init__(self, *questions: Pulled | Exception) -> None:
        self.questions = deque(questions)
        self.pushed: list[Message] = []
        self.forgotten = 0
        self.over: set[int] = set()
        self.asked_whether_over = threading.Event()
        self.refuses: Exception | None = None
        self.stop = threading.Event()

    def pull(self) -> Pulled | None:
        if not self.questions:
            self.stop.set()
            return None
        found = self.questions.popleft()
        if isinstance(found, Exception):
            raise found
        return found

    def push(self, question: Pulled, reply: Message, seconds: float) -> bool:
        assert seconds >= 0
        assert reply.metadata.reply_to_message_id == question.message.metadata.message_id
        self.pushed.append(reply)
        if self.refuses is not None:
            raise self.refuses
        return True

    def forget(self) -> None:
        self.forgotten += 1

    def run_is_over(self, run_id: int) -> bool:
        self.asked_whether_over.set()
        return run_id in self.over

    def time(self) -> float:
        return time.time()


class Worker:
    """The airlock: answers by the question's own bytes, turned round, or as a test wants it."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.away = 0
        self.lost_after = -1
        self.code = ""
        self.until: threading.Event | None = None
        self.stopped: list[str] = []

    def execute(
        self,
        document: bytes,
        chunks: Iterable[bytes | memoryview] = (),
        array_bytes: int = 0,
        *,
        deadline_s: float,
    ) -> AirlockAnswer:
        if self.away:
            self.away -= 1
            raise AirlockUnavailable("away", code="worker_unavailable")
        self.asked.append(document)
        array = b"".join(bytes(chunk) for chunk in chunks)
        assert len(array) == array_bytes
        if self.until is not None and not self.until.wait(deadline_s):
            raise AirlockUnavailable("too late", code="worker_unavailable")
        if self.code:
            return AirlockAnswer(b"", self.code, 0, iter(()))
        back = array[::-1]
        return AirlockAnswer(b"did " + document, "", len(back), self._sent(back))

    def _sent(self, data: bytes) -> Any:
        if self.lost_after == 0:
            self.lost_after = -1
            raise AirlockUnavailable("lost", code="worker_unavailable")
        for number, piece in enumerate(pieces(memoryview(data))):
            if number == self.lost_after - 1:
                self.lost_after = -1
                raise AirlockUnavailable("lost", code="worker_unavailable")
            yield bytes(piece)

    def stop(self, run: str) -> bool:
        self.stopped.append(run)
        if self.until is not None:
            self.until.set()
        return True

    def status(self) -> WorkerStatus:
        return WorkerStatus()


def served(line: Line, worker: Worker, **more: Any) -> SiteNode:
    node = SiteNode(line, worker, Traffic(), line.stop, poll_s=0.01, look_s=0.02)
    for name, value in more.items():
        setattr(node, name, value)
    serving = threading.Thread(target=node.serve)
    serving.start()
    serving.join(WAIT_S)
    assert not serving.is_alive(), "the loop does not end"
    return node


def failures(line: Line) -> list[str | None]:
    return [failure_of(reply.content) for reply in line.pushed]


def test_questions_are_answered_in_order_whatever_runs_they_belong_to() -> None:
    line = Line(*(pulled(str(n).encode(), b"abc", run_id=n % 2) for n in range(5)))
    worker = Worker()
    served(line, worker)
    assert worker.asked == [b"0", b"1", b"2", b"3", b"4"]
    assert [json_of(reply.content) for reply in line.pushed] == [
        b"did " + each for each in worker.asked
    ]
    assert bytes(bytes_of(line.pushed[0].content) or b"") == b"cba"


def test_a_large_array_goes_through_in_pieces_and_comes_back_whole() -> None:
    array = bytes(range(251)) * 12_345
    line = Line(pulled(b"{}", array))
    served(line, Worker())
    assert bytes(bytes_of(line.pushed[0].content) or b"") == array[::-1]


def test_a_worker_that_is_away_is_asked_until_it_is_back() -> None:
    line, worker = Line(pulled()), Worker()
    worker.away = 3
    served(line, worker)
    assert failures(line) == [None]
    assert worker.asked == [b"{}"]


@pytest.mark.parametrize("after", [0, 2])
def test_a_worker_that_is_lost_while_it_answers_is_asked_again(after: int) -> None:
    line, worker = Line(pulled(b"{}", b"z" * 3_000_000)), Worker()
    worker.lost_after = after
    served(line, worker)
    assert worker.asked == [b"{}", b"{}"]
    assert bytes(bytes_of(line.pushed[0].content) or b"") == b"z" * 3_000_000


def test_a_worker_that_stays_away_is_a_failure_when_the_messages_time_is_over() -> None:
    line, worker = Line(pulled(seconds=0.2)), Worker()
    worker.away = 1_000
    served(line, worker)
    assert failures(line) == ["worker_unavailable"]


def test_a_question_whose_time_is_over_does_not_hold_up_the_next_one() -> None:
    line, worker = Line(pulled(b"slow", seconds=0.1), pulled(b"next")), Worker()
    worker.until = threading.Event()
    threading.Timer(0.5, worker.until.set).start()
    served(line, worker)
    assert failures(line) == ["worker_unavailable", None]
    assert worker.asked[0] == b"slow"
    assert worker.asked[-1] == b"next"


def test_the_workers_refusal_is_the_sites_answer() -> None:
    line, worker = Line(pulled()), Worker()
    worker.code = "other_federation_file"
    served(line, worker)
    assert failures(line) == ["other_federation_file"]


def test_a_run_that_is_over_is_stopped_at_the_worker(manifest: bytes) -> None:
    line, worker = Line(pulled(manifest, run_id=9)), Worker()
    line.over, worker.until = {9}, threading.Event()
    line.refuses = GoneError("over", code="run_over")
    served(line, worker)
    assert worker.stopped == [RUN]


def test_a_run_that_goes_on_is_not_stopped(manifest: bytes) -> None:
    line, worker = Line(pulled(manifest, run_id=9)), Worker()
    worker.until = threading.Event()
    letting_go = threading.Thread(target=_after, args=(line.asked_whether_over, worker.until.set))
    letting_go.start()
    served(line, worker)
    assert worker.stopped == []
    assert failures(line) == [None]


def test_a_run_that_is_over_while_the_worker_is_away_is_forgotten() -> None:
    line, worker = Line(pulled(run_id=9)), Worker()
    line.over, worker.away = {9}, 1_000
    served(line, worker)
    assert line.pushed == []
    assert line.forgotten == 1


def test_a_node_that_ends_leaves_its_question_in_hand_and_the_worker_computing() -> None:
    line, worker = Line(pulled()), Worker()
    worker.away = 1_000
    threading.Timer(0.1, line.stop.set).start()
    served(line, worker)
    assert line.pushed == []
    assert line.forgotten == 0
    assert worker.stopped == []


@pytest.mark.parametrize(
    "trouble",
    [
        GoneError("over", code="run_over"),
        GoneError("late", code="too_late"),
        RoundError("refused", code="request_refused"),
        RoundError("no head", code="message_form"),
    ],
)
def test_what_cannot_be_pulled_or_pushed_does_not_end_the_loop(trouble: Exception) -> None:
    line, worker = Line(trouble, pulled(b"after")), Worker()
    served(line, worker)
    assert worker.asked == [b"after"]
    line = Line(pulled(b"one"), pulled(b"two"))
    line.refuses = trouble
    served(line, worker)
    assert len(line.pushed) == 2


def _strange() -> dict[str, RecordDict]:
    numpy_format = RecordDict({"wardround": ConfigRecord({"bytes": b"{}"})})
    numpy_format["arrays"] = ArrayRecord({"packed": _array("numpy.ndarray")})
    two = RecordDict({"wardround": ConfigRecord({"bytes": b"{}"})})
    two["arrays"] = ArrayRecord({"packed": _array(), "more": _array()})
    return {
        "empty": RecordDict(),
        "no document": RecordDict({"wardround": ConfigRecord({"text": "x"})}),
        "text for bytes": RecordDict({"wardround": ConfigRecord({"bytes": "x"})}),
        "another record": RecordDict(
            {"wardround": ConfigRecord({"bytes": b"{}"}), "x": ConfigRecord()}
        ),
        "an array in numpy's format": numpy_format,
        "two arrays": two,
    }


def _array(stype: str = "wardround.packed.v1") -> Any:
    return Array("uint8", (1,), stype, b"x")


@pytest.mark.parametrize("name", sorted(_strange()))
def test_what_is_malformed_is_answered_and_never_reaches_the_worker(name: str) -> None:
    line, worker = Line(pulled(content=_strange()[name])), Worker()
    served(line, worker)
    assert failures(line) == ["message_form"]
    assert worker.asked == []


@pytest.mark.parametrize("kind", ["query.anything", "train.other", "evaluate.x", "system"])
def test_messages_of_another_kind_are_answered_and_never_reach_the_worker(kind: str) -> None:
    line, worker = Line(pulled(kind=kind)), Worker()
    served(line, worker)
    assert failures(line) == ["message_type"]
    assert worker.asked == []


INVITE = SessionInvite(run=RUN, site="a", address="aggregator:9443", token="0" * 32).to_bytes()


def test_an_invitation_goes_to_who_opens_streams_and_never_to_the_worker() -> None:
    line, worker, got = Line(pulled(INVITE, kind=SESSION_TYPE, run_id=9)), Worker(), []

    def accept(document: bytes) -> bytes:
        got.append(document)
        return b""

    node = served(line, worker, on_session=accept)
    assert got == [INVITE]
    assert json_of(line.pushed[0].content) == b""
    assert worker.asked == []
    assert not node.run_is_over(RUN)
    line.over = {9}
    assert node.run_is_over(RUN)
    assert not node.run_is_over("f" * 16)


def test_an_invitation_that_is_refused_is_answered_by_the_code() -> None:
    def refuse(document: bytes) -> bytes:
        raise WireError("for another", code="session_site")

    line = Line(pulled(INVITE, kind=SESSION_TYPE))
    served(line, Worker(), on_session=refuse)
    assert failures(line) == ["session_site"]


def test_a_node_without_streams_says_so() -> None:
    line = Line(pulled(INVITE, kind=SESSION_TYPE))
    served(line, Worker())
    assert failures(line) == ["session_unsupported"]


def test_an_idle_node_looks_less_often_and_a_busy_one_often() -> None:
    node = SiteNode(Line(), Worker(), Traffic(), threading.Event(), poll_s=0.1)
    assert node._pause() == 0.1
    node._last -= 50.0
    assert 0.9 < node._pause() < 1.2
    node._last -= 5_000.0
    assert node._pause() == 2.0


def test_no_text_of_a_stranger_enters_the_log(request: pytest.FixtureRequest) -> None:
    written = io.StringIO()
    set_log_stream(written)
    request.addfinalizer(lambda: set_log_stream(None))
    served(Line(pulled(kind="train.mrsmiller")), Worker())
    assert "message_answered" in written.getvalue()
    assert "miller" not in written.getvalue()


@pytest.fixture
def manifest() -> bytes:
    return StepManifest(
        run=RUN,
        step=1,
        kind="describe",
        round=0,
        sites=("a",),
        spec_sha256="1" * 64,
        backbone_sha256=None,
        state_sha256="2" * 64,
        update_norm=1.0,
        subjects=10,
        bound=1.0,
        seed=0,
    ).to_bytes()


def _after(event: threading.Event, call: Callable[[], object]) -> None:
    event.wait(WAIT_S)
    call()
