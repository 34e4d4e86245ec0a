"""What an aggregation rule provides."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from wardround_common.types import SiteId

Values = npt.NDArray[np.float32]


class Aggregation(Protocol):
    """One round's aggregation: fold updates, then move the global state.

    Updates come in the order of the roster, whatever the order of arrival
    (:class:`~wardround_server.rounds.roster_order.RosterOrder` sees to it), from one thread, and are
    not kept: a rule is plain arithmetic and needs no tricks to be reproducible.
    """

    def fold(self, site: SiteId, update: Values, num_subjects: int) -> None:
        """Take in one admitted update and let go of it.

        Args:
            site: whose it is.
            update: float32 [n], finite, within the manifest's norm bound; read only, and the
                buffer is used again after the call.
            num_subjects: the site's weight, 1 to the manifest's cap.
        """
        ...

    def finish(self, state: Values, memory: Values) -> tuple[Values, Values]:
        """The next global state.

        Args:
            state: float32 [n], the state that the updates are changes of.
            memory: float32 [k], what the rule returned in the round before; empty in the first.

        Returns:
            The next state, float32 [n], and what the rule wants to remember (a server optimizer's
            moments), float32 [k]; the engine journals both together.

        Raises:
            ValueError: nothing was folded.
        """
        ...
