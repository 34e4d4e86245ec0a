"""Flower messages and their parts: what was handed over, what is sent back.

The head of a message and its parts come from elsewhere. What is no message, or has more parts than
one may have, becomes a message without content, which is then answered as malformed: whoever sends
it loses an answer, and the node nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from wardround_common.errors import RoundError
from wardround_common.types import HEX_DIGEST

MAX_PARTS: Final = 20_000
"""Of a message; 100 GB in Flower's chunks."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A message and its end.

    Attributes:
        message: its content is empty if what was received is no message.
        until: aggregator's time at which nobody waits for the answer any more.
    """

    message: Message
    until: float


class Handed:
    """A message that the aggregator has handed over, without its parts.

    Args:
        response: holds one message.

    Raises:
        RoundError: it does not even have a head.
    """

    def __init__(self, response: PullMessagesResponse) -> None:
        try:
            head = metadata_from_proto(response.messages_list[0].metadata)
            tree = response.message_object_trees[0]
            names = list(dict.fromkeys(each.object_id for each in iterate_object_tree(tree)))
        except Exception as error:
            raise RoundError("the message has no head", code="message_form") from error
        whole = len(names) <= MAX_PARTS and all(re.fullmatch(HEX_DIGEST, name) for name in names)
        self._head = head
        self.name = str(tree.object_id)
        self.run_id = int(head.run_id)
        self.until = float(head.created_at + head.ttl)
        self.parts = tuple(names) if whole else ()

    def pulled(self, contents: Mapping[str, bytes]) -> Pulled:
        """The message.

        Args:
            contents: of all parts.
        """
        self._head.__dict__["_message_id"] = self.name
        return Pulled(make_message(self._head, self._content(contents)), self.until)

    def _content(self, contents: Mapping[str, bytes]) -> RecordDict:
        try:
            message = inflate_object_from_contents(self.name, dict(contents))
            return message.content if isinstance(message, Message) else RecordDict()
        except Exception:  # noqa: BLE001  whatever breaks in flwr at what a stranger made
            return RecordDict()


class Sent:
    """A reply, made of the question and an answer and nothing else.

    Args:
        pulled: the question.
        reply: its content is the answer.
    """

    def __init__(self, pulled: Pulled, reply: Message) -> None:
        self.until = pulled.until
        self.run_id = int(pulled.message.metadata.run_id)
        message = make_message(_reply_head(pulled.message.metadata), reply.content)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            self.tree = get_object_tree(message)
            self._parts = get_all_nested_objects(message)
        self.head = remove_content_from_message(message)

    def content(self, name: str) -> bytes:
        """The bytes of a part."""
        return self._parts[name].deflate()


def _reply_head(question: Metadata) -> Metadata:
    """As flwr makes it, but for the time, which is the question's."""
    return Metadata(
        run_id=question.run_id,
        message_id="",
        src_node_id=question.dst_node_id,
        dst_node_id=question.src_node_id,
        reply_to_message_id=question.message_id,
        group_id=question.group_id,
        created_at=question.created_at,
        ttl=question.ttl,
        message_type=question.message_type,
        src_task_id=question.dst_task_id,
        dst_task_id=question.src_task_id,
    )
