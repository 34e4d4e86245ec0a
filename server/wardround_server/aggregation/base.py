"""What an aggregation rule provides."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from wardround_common.wire.layout import Packed


class Aggregation(Protocol):
    """One round's aggregation: fold updates as they arrive, then move the global state.

    The result depends on the set of folded updates only, never on their order.
    """

    def fold(self, update: Packed, num_subjects: int) -> None:
        """Take in one admitted update and let go of it.

        Args:
            update: float32 [n], finite, within the manifest's norm bound.
            num_subjects: the site's weight, 1 to the manifest's cap.
        """
        ...

    def finish(self, state: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The next global state.

        Args:
            state: float32 [n], the state that the updates are changes of.

        Raises:
            ValueError: nothing was folded.
        """
        ...
