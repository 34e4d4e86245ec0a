"""How a model's tensors differ from a state, taken in one pass that also puts them back."""

from collections.abc import Mapping

import torch

from wardround_common.wire.layout import Layout, Packed, empty, unpack

_BLOCK = 1 << 16
"""Values that are subtracted and written back together: three blocks of them fit into a cache."""


class Change:
    """Takes differences of some tensors of a model, again and again.

    Args:
        layout: the tensors, in order.
        tensors: name -> the model's own tensor, for the layout's names in their order;
            contiguous where it is on a processor.
    """

    def __init__(self, layout: Layout, tensors: Mapping[str, torch.Tensor]) -> None:
        self.layout = layout
        self._tensors = [(name, tensor, _blocks(tensor)) for name, tensor in tensors.items()]
        self._own: Packed | None = None
        self._places: tuple[Packed | None, list[tuple[torch.Tensor, ...]]] = (None, [])

    @torch.no_grad()
    def take(self, state: Mapping[str, torch.Tensor], into: Packed | None = None) -> Packed:
        """The differences; and the tensors back in the state.

        Args:
            state: name -> value, in the processor's memory.
            into: float32 [n], receives them; None for one buffer that every call uses.

        Returns:
            float32 [n].
        """
        if into is None:
            self._own = into = empty(self.layout) if self._own is None else self._own
        of = zip(self._tensors, self._cut(into), strict=True)
        for (name, tensor, now), change in of:
            blocks = zip(now, _blocks(state[name], like=tensor), change, strict=True)
            for own, before, target in blocks:
                if own.device == target.device:
                    torch.sub(own, before, out=target)
                else:
                    target.copy_(own).sub_(before)
                own.copy_(before)
        return into

    def _cut(self, packed: Packed) -> list[tuple[torch.Tensor, ...]]:
        """A buffer in the blocks of each tensor; those of the last buffer are kept."""
        if self._places[0] is not packed:
            parts = unpack(self.layout, packed)
            cut = [_blocks(parts[name], like=tensor) for name, tensor, _ in self._tensors]
            self._places = (packed, cut)
        return self._places[1]


def _blocks(tensor: torch.Tensor, like: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Views that together are the tensor: one, where ``like`` is small or on a GPU."""
    like = tensor if like is None else like
    if like.numel() <= _BLOCK or like.device.type != "cpu":
        return (tensor,)
    blocks: tuple[torch.Tensor, ...] = tensor.view(-1).split(_BLOCK)  # type: ignore[no-untyped-call]
    return blocks
