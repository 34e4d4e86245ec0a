"""Folding in the order of the roster, whatever the order of arrival.

Floating-point addition is not associative: a mean that is folded in as updates arrive would depend
on which hospital answered first. Here an update is folded at once if every site before it in the
roster has been folded or will not come; otherwise it waits, in the journal on disk and not in
memory, until then. So the same set of updates gives the same bytes, for any rule of aggregation.
"""

from collections.abc import Callable, Sequence
from typing import Any

from wardround_common.types import SiteId
from wardround_common.wire.layout import Packed

Fold = Callable[[SiteId, Any, int], None]
Fetch = Callable[[], Packed]


class RosterOrder:
    """Calls ``fold`` once for each update, in roster order.

    Args:
        sites: the roster, in order.
        fold: takes in one update.
    """

    def __init__(self, sites: Sequence[str], fold: Fold) -> None:
        self._waiting_for = list(reversed(sites))
        self._fold = fold
        self._parked: dict[str, tuple[Fetch, int] | None] = {}

    def is_next(self, site: str) -> bool:
        """Whether the site's update would be folded at once."""
        return bool(self._waiting_for) and self._waiting_for[-1] == site

    def put(self, site: SiteId, fetch: Fetch, num_subjects: int) -> None:
        """An admitted update of a site.

        Args:
            site: whose it is; once a site.
            fetch: reads the update when its turn comes, which may be within this call.
            num_subjects: its weight.
        """
        self._parked[site] = (fetch, num_subjects)
        self._advance()

    def skip(self, site: SiteId) -> None:
        """The site will not contribute."""
        self._parked.setdefault(site, None)
        self._advance()

    def close(self) -> None:
        """Nobody else will contribute: fold what still waits."""
        for site in self._waiting_for:
            self._parked.setdefault(site, None)
        self._advance()

    def _advance(self) -> None:
        while self._waiting_for and self._waiting_for[-1] in self._parked:
            site = self._waiting_for.pop()
            parked = self._parked[site]
            self._parked[site] = None
            if parked is not None:
                fetch, num_subjects = parked
                self._fold(SiteId(site), fetch(), num_subjects)
