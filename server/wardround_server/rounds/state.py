"""The global trainable set, as one array."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from wardround_common.types import Digest, sha256_hex
from wardround_common.wire.layout import Layout, as_bytes

Values = npt.NDArray[np.float32]


class GlobalState:
    """Every tensor that any round of the run trains, packed.

    Args:
        layout: of all those tensors.
        read: gives float32 [layout.num_values], never written to; called when first needed, so
            that the states of rounds long past are named without being in memory.
        digest: SHA-256 of the packed bytes, where it is known already.
    """

    def __init__(
        self, layout: Layout, read: Callable[[], Values], digest: Digest | None = None
    ) -> None:
        self.layout = layout
        self._read = read
        self._digest = digest

    @cached_property
    def values(self) -> Values:
        """float32 [layout.num_values]."""
        return self._read()

    def digest(self) -> Digest:
        """SHA-256 of the packed bytes."""
        if self._digest is None:
            self._digest = sha256_hex(as_bytes(self.values))
        return self._digest

    def part(self, layout: Layout) -> "GlobalState":
        """The tensors of a smaller layout, packed; the state itself where the layouts are equal."""
        if layout == self.layout:
            return self
        where = {spec.name: place for spec, place in self.layout.slices()}
        places = [where[spec.name] for spec in layout.tensors]
        return GlobalState(layout, lambda: np.concatenate([self.values[p] for p in places]))

    def with_part(self, layout: Layout, values: Values) -> "GlobalState":
        """This state with the tensors of a smaller layout replaced."""
        if layout == self.layout:
            return state_of(layout, values)
        whole = self.values.copy()
        where = {spec.name: place for spec, place in self.layout.slices()}
        for spec, place in layout.slices():
            whole[where[spec.name]] = values[place]
        return state_of(self.layout, whole)


def state_of(layout: Layout, values: Values) -> GlobalState:
    """A state whose values are at hand."""
    return GlobalState(layout, lambda: values)
