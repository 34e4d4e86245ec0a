"""Flower messages from the node's side: pulled whole, answered once, whatever happens in between.

What differs from ``flower-supernode``, beside patience (``fleet_api.py``):

1. A node that was killed and comes back is online again at once, and answers the question that it
   had in hand (``in_hand.py``). One that had none gives up its old lease itself instead of waiting
   60 s for it.
2. A reply is made of the question and the worker's answer and nothing else, not even the time. So
   sending it again, after whatever was lost, is sending the same message: Flower takes it once.
3. A message whose parts are still on their way is asked for again after 20 ms, not after a second;
   parts travel two at a time, since the SuperLink writes to one database.
4. Flower hands a message over once, so an answer that was lost on its way may have been one. After
   that, after a message that does not become whole, and after a reply that Flower does not take any
   more while parts of it may be missing, the node comes anew; whoever asked sees it and asks again.
5. A bundle is never fetched: ``GetFab`` is not called, and nothing that was received is executed.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import httpx
from flwr.app import Message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.heartbeat import HeartbeatSender

from wardround_client.node.fleet_api import OVER, FleetApi, GoneError
from wardround_client.node.identity import Identity
from wardround_client.node.in_hand import InHand
from wardround_client.node.messages import Handed, Pulled, Sent
from wardround_client.node.troubles import TroubleError, flower_code, is_unheard
from wardround_common.errors import RoundError
from wardround_common.log import log_event

_PART_PAUSE_S, _AGAIN_PAUSE_S = 0.02, 0.5
_PART_S = 15.0
"""Whoever sends a message through an outage gives it up and sends another one; then the rest of the
first never comes, and the second waits behind it."""
_AT_ONCE = 2
_FAILURES = (httpx.HTTPError, TroubleError, ValueError, RuntimeError)
"""Of a call that is tried once; ``RuntimeError`` where the connection was closed meanwhile."""

T = TypeVar("T")


class FleetConnection:
    """One node's connection to the SuperLink.

    Args:
        address: front door, ``host:port``.
        identity: keys and certificates.
        in_hand: what the node remembers between lives.
        stop: ends every wait.
        clock: this machine's time, in seconds since 1970.
    """

    def __init__(
        self,
        address: str,
        identity: Identity,
        in_hand: InHand,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stop = stop
        self._in_hand = in_hand
        self._api = FleetApi(address, identity, stop, clock)
        self._node = Node()
        self._may_have_lost = False
        self._heartbeats = HeartbeatSender(self._heartbeat)
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fleet")

    @property
    def node_id(self) -> int:
        """Flower's number of this node."""
        return int(self._node.node_id)

    @property
    def trouble(self) -> str:
        """What is wrong, a key of ``TROUBLES``; empty if nothing is."""
        return self._api.trouble

    @property
    def last_contact(self) -> float:
        """When the aggregator last answered, seconds since 1970."""
        return self._api.last_contact

    def time(self) -> float:
        """The aggregator's time, in seconds since 1970."""
        return self._api.time()

    def open(self) -> None:
        """Come online, however long it takes.

        Raises:
            GoneError: stopped meanwhile.
        """
        self._api.call(self._resume if self._in_hand.head else self._activate)
        self._api.on_back = self._heartbeat
        if not self._heartbeats.is_running:
            self._heartbeats.start()
        log_event("node_connected", resumed=bool(self._in_hand.head))

    def pull(self) -> Pulled | None:
        """The next message for this node, whole and confirmed; None if there is none.

        Raises:
            GoneError: nobody waits for it any more, or stopped; after a stop it stays in hand.
            RoundError: the aggregator does not hand it over.
        """
        head = self._in_hand.head
        if not head:
            response = self._call(self._handed)
            if not response.messages_list:
                return None
            head = response.SerializeToString()
            self._in_hand.take(head)
        with self._given_up():
            handed = Handed(PullMessagesResponse.FromString(head))
            contents = self._parts(handed)
            request = ConfirmMessageReceivedRequest(
                node=self._node, run_id=handed.run_id, message_object_id=handed.name
            )
            self._call(lambda: self._api.client.ConfirmMessageReceived(request), handed.until)
            return handed.pulled(contents)

    def push(self, pulled: Pulled, reply: Message, seconds: float) -> bool:
        """Send a reply; whether it was taken.

        Args:
            pulled: what it answers.
            reply: only its content counts.
            seconds: what the answer took to compute.

        Raises:
            GoneError: nobody waits for it any more, or stopped; after a stop the question stays
                in hand.
            RoundError: the aggregator does not take it.
        """
        with self._given_up():
            sent = Sent(pulled, reply)
            begun = self._begin(sent, seconds)
            taken = bool(begun.objects_to_push)
            self._may_have_lost = not taken  # begun before, and maybe only in part
            while begun.objects_to_push and not self._push_parts(sent, begun):
                self._stop.wait(_AGAIN_PAUSE_S)
                begun = self._begin(sent, seconds)  # Flower gave up waiting for the rest
        self._in_hand.answered()
        return taken

    def run_is_over(self, run_id: int) -> bool:
        """Whether the aggregator has ended or stopped a run; False while that cannot be asked."""
        try:
            self._api.client.GetRun(GetRunRequest(node=self._node, run_id=run_id))
        except httpx.HTTPStatusError as error:
            return flower_code(error) in OVER
        except _FAILURES:
            return False
        return False

    def close(self) -> None:
        """Go offline; with a question in hand only as far as the next life of this node goes on."""
        if self._heartbeats.is_running:
            self._heartbeats.stop()
        if self.node_id and not self._in_hand.head:
            self._leave(self.node_id)
        self._node = Node()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._api.close()

    @contextmanager
    def _given_up(self) -> Iterator[None]:
        """Forget the question if it will never be answered; after a stop it will be."""
        try:
            yield
        except GoneError as error:
            if error.code != "stopped":
                self._in_hand.answered()
            raise
        except RoundError:
            self._in_hand.answered()
            raise

    def _call(self, attempt: Callable[[], T], until: float | None = None) -> T:
        """A call as this node, through any outage; registered anew it is another one."""

        def as_known() -> T:
            try:
                return attempt()
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.UNAUTHORIZED:
                    raise
                self._activate()
                return attempt()

        return self._api.call(as_known) if until is None else self._api.call(as_known, until)

    def _handed(self) -> PullMessagesResponse:
        """What the aggregator hands over; after an answer that may have been lost, as a new comer."""
        if self._may_have_lost:
            self._leave(self.node_id)
            self._activate()
            self._may_have_lost = False
        try:
            return self._api.client.PullMessages(PullMessagesRequest(node=self._node))
        except httpx.HTTPError as error:
            self._may_have_lost = is_unheard(error)
            raise

    def _parts(self, handed: Handed) -> Mapping[str, bytes]:
        contents = self._pool.map(lambda name: self._part(handed, name), handed.parts)
        return dict(zip(handed.parts, contents, strict=True))

    def _part(self, handed: Handed, name: str) -> bytes:
        """One part, from disk or from the aggregator, and then on disk.

        Raises:
            RoundError: the aggregator does not have it, or does not get it.
        """
        kept = self._in_hand.part(name)
        if kept is not None:
            return kept
        request = PullObjectRequest(node=self._node, run_id=handed.run_id, object_id=name)
        for _ in range(int(_PART_S / _PART_PAUSE_S)):
            found = self._call(lambda: self._api.client.PullObject(request), handed.until)
            if not found.object_found:
                break
            if found.object_available:
                self._in_hand.add(name, found.object_content)
                return bytes(found.object_content)
            self._stop.wait(_PART_PAUSE_S)
        self._may_have_lost = True
        raise RoundError("a part of the message is missing", code="message_parts")

    def _begin(self, sent: Sent, seconds: float) -> PushMessagesResponse:
        """Announce a reply; Flower says which of its parts it does not have."""
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(sent.head)],
            message_object_trees=[sent.tree],
            clientapp_runtime_list=[seconds],
        )
        return self._call(lambda: self._api.client.PushMessages(request), sent.until)

    def _push_parts(self, sent: Sent, begun: PushMessagesResponse) -> bool:
        """Send the parts that Flower wants; whether it took them all."""

        def push(name: str) -> bool:
            request = PushObjectRequest(
                node=self._node,
                run_id=sent.run_id,
                session_id=begun.session_id,
                object_id=name,
                object_content=sent.content(name),
            )
            answer = self._call(lambda: self._api.client.PushObject(request), sent.until)
            return bool(answer.stored)

        return all(list(self._pool.map(push, begun.objects_to_push)))

    def forget(self) -> None:
        """The question in hand will not be answered: its run is over."""
        self._in_hand.answered()

    def _resume(self) -> None:
        """Go on as the node of the last life, whose lease may or may not have ended."""
        node = Node(node_id=self._in_hand.node_id)
        request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            known = bool(self._api.client.SendNodeHeartbeat(request).success)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.UNAUTHORIZED:
                raise
            known = False
        if known:
            self._node = node
        else:
            self._in_hand.answered()  # asked of a node that is not this one any more
            self._activate()

    def _activate(self) -> None:
        request = ActivateNodeRequest(
            public_key=self._api.public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        try:
            found = self._api.client.ActivateNode(request)
        except httpx.HTTPStatusError as error:
            if flower_code(error) != ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                raise
            if not self._leave(self._in_hand.node_id):
                raise TroubleError("node_unknown") from error
            found = self._api.client.ActivateNode(request)
        self._node = Node(node_id=found.node_id)
        self._in_hand.node_id = found.node_id

    def _leave(self, node_id: int) -> bool:
        """Give up the lease of this or of the last life; whether there was one."""
        try:
            self._api.client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        except _FAILURES:
            return False
        return True

    def _heartbeat(self) -> bool:
        """Renew the lease, or take it again; False, and never an exception, if that failed."""
        request = SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        try:
            return bool(self._api.client.SendNodeHeartbeat(request).success)
        except _FAILURES:
            return False
