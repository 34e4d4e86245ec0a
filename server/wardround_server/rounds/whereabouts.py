"""Where the sites of a roster are: which node is whose, and since when it is there.

Nodes are found by the name that they were registered under, and nodes of other names are nobody.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from flwr.serverapp import Grid

from wardround_common.errors import RoundError
from wardround_common.types import SiteId


@dataclass(frozen=True, slots=True)
class Presence:
    """A site that is there.

    Attributes:
        node_id: Flower's number of its node.
        since: Unix time at which the node came; a message that was sent before may be lost. 0 where
            nodes never come or go.
    """

    node_id: int
    since: float = 0.0


class Whereabouts(Protocol):
    """Which sites are there now."""

    @property
    def may_come(self) -> bool:
        """Whether a site that is not there may come later."""
        ...

    def look(self) -> Mapping[SiteId, Presence]:
        """The sites that are there, as of a moment ago."""
        ...


class Fixed:
    """Sites that were there from the start and stay, as in one process.

    Args:
        node_of: site -> node.
    """

    may_come = False

    def __init__(self, node_of: Mapping[SiteId, int]) -> None:
        self._there = {site: Presence(node) for site, node in node_of.items()}

    def look(self) -> Mapping[SiteId, Presence]:
        """See :class:`Whereabouts`."""
        return self._there


class OnlineNodes:
    """The nodes of a deployment that are online, asked for at most once in a while.

    Args:
        grid: Flower's.
        sites: the roster.
        every_s: seconds between two looks.
        clock: seconds.
    """

    may_come = True

    def __init__(
        self,
        grid: Grid,
        sites: Sequence[str],
        every_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grid = grid
        self._sites = frozenset(sites)
        self._every_s = every_s
        self._clock = clock
        self._looked_at: float | None = None
        self._there: dict[SiteId, Presence] = {}

    def look(self) -> Mapping[SiteId, Presence]:
        """See :class:`Whereabouts`.

        Raises:
            RoundError: two nodes carry the name of one site.
        """
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= self._every_s:
            self._there = roster_nodes(self._grid, self._sites)
            self._looked_at = now
        return self._there


def roster_nodes(grid: Grid, sites: Collection[str]) -> dict[SiteId, Presence]:
    """The roster's sites that are known to the grid.

    Raises:
        RoundError: two nodes carry the name of one site.
    """
    found: dict[SiteId, Presence] = {}
    for node in grid.get_nodes():
        if node.name not in sites:
            continue
        if node.name in found:
            raise RoundError(
                f"two nodes are registered as {node.name!r}; unregister one", code="node_name"
            )
        since = node.last_activated_at
        moment = datetime.fromisoformat(since).timestamp() if since else 0.0
        found[SiteId(node.name)] = Presence(node.node_id, moment)
    return found
