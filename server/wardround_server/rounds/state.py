"""The global trainable set, as one array."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround_common.types import Digest, sha256_hex
from wardround_common.wire.layout import Layout, as_bytes

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GlobalState:
    """Every tensor that any round of the run trains, packed.

    Attributes:
        layout: of the last round, which is the largest: sets only grow.
        values: float32 [layout.num_values]; never written to.
    """

    layout: Layout
    values: Values

    def digest(self) -> Digest:
        """SHA-256 of the packed bytes."""
        return sha256_hex(as_bytes(self.values))

    def part(self, layout: Layout) -> Values:
        """The tensors of a smaller layout, packed; the array itself where the layouts are equal."""
        if layout == self.layout:
            return self.values
        where = {spec.name: place for spec, place in self.layout.slices()}
        return np.concatenate([self.values[where[spec.name]] for spec in layout.tensors])

    def with_part(self, layout: Layout, values: Values) -> "GlobalState":
        """This state with the tensors of a smaller layout replaced."""
        if layout == self.layout:
            return GlobalState(layout, values)
        whole = self.values.copy()
        where = {spec.name: place for spec, place in self.layout.slices()}
        for spec, place in layout.slices():
            whole[where[spec.name]] = values[place]
        return GlobalState(self.layout, whole)
