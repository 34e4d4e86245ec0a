"""How a model's tensors differ from a state, taken in one pass that also puts them back."""

from collections.abc import Mapping

import torch

from wardround_common.wire.layout import Layout, Packed, empty, unpack

_BLOCK = 1 << 16
"""Values that are subtracted and written back together: three blocks of them fit into a cache."""


class Change:
    """A packed buffer beside some tensors of a model.

    Args:
        layout: the tensors, in order.
        tensors: name -> the model's own tensor; contiguous where it is on a processor.
    """

    def __init__(self, layout: Layout, tensors: Mapping[str, torch.Tensor]) -> None:
        self.layout = layout
        self._packed = empty(layout)
        self._parts = [
            (name, tensors[name], _blocks(tensors[name]), _blocks(place, like=tensors[name]))
            for name, place in unpack(layout, self._packed).items()
        ]

    @torch.no_grad()
    def take(self, state: Mapping[str, torch.Tensor]) -> Packed:
        """Fill the buffer with the differences, and put the tensors back.

        Args:
            state: name -> value, in the processor's memory.

        Returns:
            float32 [n], valid until the next call.
        """
        for name, tensor, now, change in self._parts:
            blocks = zip(now, _blocks(state[name], like=tensor), change, strict=True)
            for own, before, target in blocks:
                if own.device == target.device:
                    torch.sub(own, before, out=target)
                else:
                    target.copy_(own).sub_(before)
                own.copy_(before)
        return self._packed


def _blocks(tensor: torch.Tensor, like: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Views that together are the tensor: one, where ``like`` is small or on a GPU."""
    like = tensor if like is None else like
    if like.numel() <= _BLOCK or like.device.type != "cpu":
        return (tensor,)
    blocks: tuple[torch.Tensor, ...] = tensor.view(-1).split(_BLOCK)  # type: ignore[no-untyped-call]
    return blocks
