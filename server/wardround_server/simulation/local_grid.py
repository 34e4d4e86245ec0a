"""Flower's ``Grid`` within one process: messages are handed over, not sent.

Nothing is serialised. A message waits until the server asks for replies; then exactly one site
computes, and its reply is handed over before the next begins, so that at most one update exists
beside the aggregate however many sites there are: its memory is used again by the next site.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SiteApp = Callable[[Message, Context], Message]

_SERVER_NODE = 1
_FIRST_NODE = 2


class LocalGrid(Grid):
    """A grid whose nodes are the named sites of a simulation.

    Args:
        app: the ClientApp; called as ``app(message, context)`` with the site's name in
            ``context.node_config["site"]``.
        sites: the roster; node ids follow its order.
        run_id: Flower's number of the run.
    """

    def __init__(self, app: SiteApp, sites: Sequence[str], run_id: int = 1) -> None:
        self._app = app
        self._run_id = run_id
        self._site_of = {_FIRST_NODE + index: site for index, site in enumerate(sites)}
        self._contexts: dict[int, Context] = {}
        self._waiting: deque[Message] = deque()
        self._identify(_SERVER_NODE)

    def set_run(self, run: Run) -> None:
        """A simulation has one run."""
        del run

    @property
    def run(self) -> Run:
        """The run's number."""
        return Run.create_empty(self._run_id)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every site is always there."""
        return list(self._site_of)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes with the sites' names."""
        return [NodeInfo(node_id=node, name=site) for node, site in self._site_of.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; the sites compute when replies are pulled."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid4().hex
            self._waiting.append(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let one waiting site compute, and hand its reply over."""
        wanted = set(message_ids)
        for _ in range(len(self._waiting)):
            message = self._waiting.popleft()
            if message.metadata.message_id in wanted:
                return [self._deliver(message)]
            self._waiting.append(message)
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, compute and return all replies."""
        del timeout
        self.push_messages(messages)
        return [self._deliver(self._waiting.popleft()) for _ in range(len(self._waiting))]

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = self._contexts.setdefault(
            node,
            Context(
                run_id=self._run_id,
                node_id=node,
                node_config={"site": self._site_of[node]},
                state=RecordDict(),
                run_config={},
            ),
        )
        self._identify(node)
        try:
            return self._app(message, context)
        finally:
            self._identify(_SERVER_NODE)

    def _identify(self, node: int) -> None:
        """Flower builds messages in the name of the task that runs in this process."""
        identity: Any = TaskIdentity
        identity.run_id, identity.node_id, identity.task_id = self._run_id, node, 1
