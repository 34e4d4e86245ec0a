"""Invitations to tensor streams, as Flower messages."""

from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from wardround_common.types import SiteId
from wardround_common.wire.flower import to_content
from wardround_common.wire.session import SESSION_TYPE, SessionInvite

_TTL_S = 60.0


class FlowerInvites:
    """Sends each site its invitation; who accepts opens a session, so no reply is waited for.

    Args:
        grid: Flower's.
        node_of: site -> Flower node id.
    """

    def __init__(self, grid: Grid, node_of: Mapping[SiteId, int]) -> None:
        self._grid = grid
        self._node_of = dict(node_of)

    def __call__(self, invites: Mapping[SiteId, SessionInvite]) -> None:
        """Send them to the sites that have a node."""
        messages = [
            Message(
                to_content(invite.to_bytes(), None), self._node_of[site], SESSION_TYPE, ttl=_TTL_S
            )
            for site, invite in invites.items()
            if site in self._node_of
        ]
        if messages:
            list(self._grid.push_messages(messages))
