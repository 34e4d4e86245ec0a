"""The ServerApp's grid: flwr's ``HttpGrid``, patient with a SuperLink that restarts.

What differs from flwr's own:

1. A reply whose parts are still on their way holds nobody up: the others are handed over, and its
   parts are looked for again at the next call. flwr waits for it, up to minutes, in steps of a
   second. A reply that does not become whole within three minutes is reported as lost. Whole replies
   are handed over one a call, and the parts of a reply are asked for once its last one is there: so one
   reply is in memory, and the others wait in the SuperLink's database.
2. While the SuperLink is away, calls are tried again every second instead of every twenty.
3. What was pulled is complete or is lost as a whole; the carrier then asks again.
4. The SuperLink hands a reply over once, and flwr asks again by itself where the answer was lost on its
   way. Whatever was not there then is reported as lost.
5. A reply that is larger than any answer, or has not flwr's form, is an error like any other: no site
   can fill the memory or end the run.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, cast

import httpx
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
)
from flwr.supercore.retry import RetryState, exponential
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

_PARTS_AT_ONCE: Final = 2
_WHOLE_WITHIN_S: Final = 185.0
"""flwr forgets an upload that rests for 180 s."""
_PAUSE_S: Final = 1


@dataclass(slots=True)
class _Arriving:
    """A reply, and those of its parts that are here.

    Attributes:
        message_id: names it, and is the last part of its tree, which is sent last.
        question_id: the message that it answers.
        node_id: who sent it, as the SuperLink knows.
        names: its parts.
        until: when it counts as lost, by ``time.monotonic()``.
        parts: name -> content.
        lost: a part is gone for good.
    """

    message_id: str
    question_id: str
    node_id: int
    names: tuple[str, ...]
    until: float
    parts: dict[str, bytes] = field(default_factory=dict)
    lost: bool = False

    @property
    def num_bytes(self) -> int:
        """What is here."""
        return sum(map(len, self.parts.values()))


class PatientGrid(Grid):
    """A grid over one that flwr made.

    Args:
        grid: the ``HttpGrid`` that flwr made; its run is set.
        max_reply_bytes: the largest answer that a site may give.
    """

    def __init__(self, grid: Grid, max_reply_bytes: int) -> None:
        self._grid = cast("HttpGrid", grid)
        self._max_reply_bytes = max_reply_bytes
        self._arriving: dict[str, _Arriving] = {}
        self._pool = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="parts")
        self._unheard = threading.Event()
        retries = self._grid._retry_invoker  # noqa: SLF001
        retries.wait_gen_factory = lambda: exponential(max_delay=_PAUSE_S)
        retries.on_backoff = self._noted(retries.on_backoff)
        super().__init__()

    def set_run(self, run: Run) -> None:
        """See ``Grid``."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See ``Grid``."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See ``Grid``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid``."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See ``Grid``: the nodes that are online."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See ``Grid``; an empty name for a message that was not taken."""
        wanted = list(messages)
        try:
            taken = list(self._grid.push_messages(wanted))
        except ObjectPushError:
            taken = []  # the SuperLink was away for so long that it forgot the upload
        return [name or "" for name in taken] or [""] * len(wanted)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See ``Grid``: replies that are whole, and an error for each that was lost."""
        wanted = set(message_ids)
        lost = self._look(sorted(wanted - {each.question_id for each in self._arriving.values()}))
        whole = [self._error(name, ErrorCode.MESSAGE_UNAVAILABLE) for name in lost]
        for reply in list(self._arriving.values()):
            if reply.question_id not in wanted:
                del self._arriving[reply.message_id]  # nobody wants it any more
                continue
            try:
                self._fetch(reply)
            except httpx.HTTPError:
                if not whole:
                    raise
                break  # what is whole must not be lost with it
            if reply.lost or time.monotonic() >= reply.until:
                del self._arriving[reply.message_id]
                whole.append(self._error(reply.question_id, ErrorCode.MESSAGE_UNAVAILABLE))
            elif reply.num_bytes > self._max_reply_bytes:
                del self._arriving[reply.message_id]
                whole.append(self._error(reply.question_id, ErrorCode.UNKNOWN))
            elif len(reply.parts) == len(reply.names):
                del self._arriving[reply.message_id]
                whole.append(self._finished(reply))
                break
        return whole

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See ``Grid``."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _look(self, message_ids: list[str]) -> list[str]:
        """Ask for replies that have begun to arrive; returns those that may have been lost."""
        if not message_ids:
            return []
        self._unheard.clear()
        found = self._client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        until = time.monotonic() + _WHOLE_WITHIN_S
        for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            metadata = message.metadata
            self._arriving[metadata.message_id] = _Arriving(
                metadata.message_id,
                metadata.reply_to_message_id,
                metadata.src_node_id,
                _names(tree),
                until,
            )
        arriving = {each.question_id for each in self._arriving.values()}
        return [name for name in message_ids if name not in arriving and self._unheard.is_set()]

    def _noted(self, before: Callable[[RetryState], None] | None) -> Callable[[RetryState], None]:
        """Note that a call may have been answered, and its answer was lost."""

        def on_backoff(state: RetryState) -> None:
            if not isinstance(state.exception, httpx.ConnectError | httpx.ConnectTimeout):
                self._unheard.set()
            if before is not None:
                before(state)

        return on_backoff

    def _fetch(self, reply: _Arriving) -> None:
        if reply.message_id not in reply.parts and not self._fetch_of(reply, [reply.message_id]):
            return
        missing = [name for name in reply.names if name not in reply.parts]
        for at in range(0, len(missing), _PARTS_AT_ONCE):
            self._fetch_of(reply, missing[at : at + _PARTS_AT_ONCE])
            if reply.lost or reply.num_bytes > self._max_reply_bytes:
                return

    def _fetch_of(self, reply: _Arriving, names: list[str]) -> bool:
        """Ask for some parts, at the same time; whether all of them are here."""
        for name, content in zip(names, self._pool.map(self._part, names), strict=True):
            if content is None:
                reply.lost = True
            elif content:
                reply.parts[name] = content
        return all(name in reply.parts for name in names)

    def _part(self, name: str) -> bytes | None:
        """The content of a part; empty while it is on its way, None if it is gone."""
        request = PullObjectRequest(
            node=self._grid.node, run_id=self._grid.run.run_id, object_id=name
        )
        found = self._client.PullObject(request)
        if not found.object_found:
            return None
        return bytes(found.object_content) if found.object_available else b""

    def _finished(self, reply: _Arriving) -> Message:
        request = ConfirmMessageReceivedRequest(
            node=self._grid.node,
            run_id=self._grid.run.run_id,
            message_object_id=reply.message_id,
        )
        with contextlib.suppress(httpx.HTTPError):  # else its copy goes with the run
            self._client.ConfirmMessageReceived(request)
        try:
            message = inflate_object_from_contents(reply.message_id, reply.parts)
        except Exception:  # noqa: BLE001  whatever a site sends must not end the run
            return self._error(reply.question_id, ErrorCode.UNKNOWN)
        if not isinstance(message, Message) or _claims(message) != (
            reply.question_id,
            reply.node_id,
        ):
            return self._error(reply.question_id, ErrorCode.UNKNOWN)
        message.metadata.__dict__["_message_id"] = reply.message_id
        return message

    def _error(self, question_id: str, code: int) -> Message:
        """As flwr reports a reply that it cannot hand over."""
        own = self._grid.node.node_id
        metadata = Metadata(
            run_id=self._grid.run.run_id,
            message_id="",
            src_node_id=own,
            dst_node_id=own,
            message_type=SYSTEM_MESSAGE_TYPE,
            group_id="",
            ttl=0,
            reply_to_message_id=question_id,
            created_at=time.time(),
        )
        return make_message(metadata=metadata, error=Error(code, ""))

    @property
    def _client(self) -> Any:
        return self._grid._runtime_client  # noqa: SLF001  its only way to the Runtime API


def _names(tree: ObjectTree) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.object_id for each in iterate_object_tree(tree)))


def _claims(message: Message) -> tuple[str, int]:
    """What a message says of itself: which one it answers, and who sent it."""
    return message.metadata.reply_to_message_id, message.metadata.src_node_id
