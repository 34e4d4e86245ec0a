"""From a Flower message to the worker and back: the same for our node and for a stock SuperNode.

The array is never looked into, and no text of any exception goes into a reply. While the worker is
away (restarting, or not yet started) it is asked again until the message's own time is over: asking
again is harmless, since the worker answers the same question with the same stored bytes.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message, RecordDict

from wardround_client.airlock.client import AirlockUnavailable
from wardround_client.node.errand import Airlock
from wardround_common.errors import WardroundError, WireError
from wardround_common.rpc.frames import joined, pieces
from wardround_common.wire.flower import (
    MESSAGE_TYPES,
    bytes_of,
    failure_content,
    json_of,
    make_reply,
    to_content_bytes,
)

_POLL_S = 0.2
_KNOWN_TYPES = frozenset(MESSAGE_TYPES.values())


@dataclass(frozen=True, slots=True)
class Relayed:
    """A reply to a message.

    Attributes:
        reply: to be sent.
        failure: the code in it; empty for an answer.
        bytes_in: document and array of the question.
        bytes_out: document and array of the answer.
    """

    reply: Message
    failure: str = ""
    bytes_in: int = 0
    bytes_out: int = 0


def failed(message: Message, code: str) -> Relayed:
    """The reply that says that a question cannot be answered."""
    return Relayed(make_reply(message, failure_content(code)), code)


def relay(
    message: Message, airlock: Airlock, unwanted: threading.Event, left: Callable[[], float]
) -> Relayed | None:
    """Have a message answered by the worker.

    Args:
        message: from the aggregator.
        airlock: to the worker.
        unwanted: set when nobody waits for the answer here any more.
        left: seconds until the message's time is over.

    Returns:
        A reply, a code where there is no answer; None if it became unwanted and there is none.
    """
    try:
        if message.metadata.message_type not in _KNOWN_TYPES:
            raise WireError("no step is asked for like this", code="message_type")
        document, array = json_of(message.content), bytes_of(message.content)
        answered = _asked(airlock, document, array, unwanted, left)
    except WardroundError as error:
        return failed(message, error.code)
    if answered is None:
        return None
    content, bytes_out = answered
    bytes_in = len(document) + (0 if array is None else array.nbytes)
    return Relayed(make_reply(message, content), bytes_in=bytes_in, bytes_out=bytes_out)


def _asked(
    airlock: Airlock,
    document: bytes,
    array: memoryview | None,
    unwanted: threading.Event,
    left: Callable[[], float],
) -> tuple[RecordDict, int] | None:
    """The content of a reply and its size; asks until there is one, or nobody wants it.

    Raises:
        AirlockUnavailable: the worker did not come back in time.
        WireError: it answered by a code, or not in the form of an answer.
    """
    while not unwanted.is_set():
        try:
            return _answer(airlock, document, array, left())
        except AirlockUnavailable:
            if left() <= 0:
                raise
            unwanted.wait(min(_POLL_S, left()))
    return None


def _answer(
    airlock: Airlock, document: bytes, array: memoryview | None, deadline_s: float
) -> tuple[RecordDict, int]:
    data = memoryview(b"") if array is None else array
    answer = airlock.execute(document, pieces(data), data.nbytes, deadline_s=deadline_s)
    received = joined(answer.chunks, answer.array_bytes)
    if answer.failure:
        raise WireError("the worker did not answer", code=answer.failure)
    content = to_content_bytes(answer.document, received)
    return content, len(answer.document) + answer.array_bytes
