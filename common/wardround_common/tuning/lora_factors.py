"""The two factors of each adapter, by name and by rank, in layouts and packed arrays.

An adapter of rank r is a pair: ``A`` [r, d_in] and ``B`` [d_out, r]. A site of a smaller rank r_k
holds the first r_k rows of ``A`` and columns of ``B``. In a model of rank r the others are zero,
and stay exactly zero in training: the gradient of a row of ``A`` is a multiple of its column of
``B`` and the other way round. The scale alpha / r is the federation's at every site, so that a
product ``B A`` means the same everywhere.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from wardround_common.types import TensorSpec
from wardround_common.wire.layout import Layout

if TYPE_CHECKING:  # layouts are asked for where there is no torch
    import torch

A: Final = ".lora_A.default.weight"
B: Final = ".lora_B.default.weight"


def factor_pairs(layout: Layout) -> dict[str, tuple[TensorSpec, TensorSpec]]:
    """The adapters of a layout that has both factors: layer's name -> (A, B), in layout order."""
    specs = {spec.name: spec for spec in layout.tensors}
    layers = [name.removesuffix(A) for name in specs if name.endswith(A)]
    return {layer: (specs[layer + A], specs[layer + B]) for layer in layers if layer + B in specs}


def layout_at_rank(layout: Layout, rank: int) -> Layout:
    """The layout with every factor cut to a rank; others stay, and so do smaller factors."""
    return Layout(
        tuple(
            replace(spec, shape=_cut_shape(spec.name, spec.shape, rank)) for spec in layout.tensors
        )
    )


def at_rank(tensors: "Mapping[str, torch.Tensor]", rank: int) -> "dict[str, torch.Tensor]":
    """The leading components of every factor, as views; other tensors as they are."""
    return {name: _leading(name, tensor, rank) for name, tensor in tensors.items()}


def zero_beyond_rank(tensors: "Mapping[str, torch.Tensor]", rank: int) -> "dict[str, torch.Tensor]":
    """The same shapes with every component after the first ``rank`` set to zero, in copies."""
    import torch

    cut = {}
    for name, tensor in tensors.items():
        if name.endswith((A, B)):
            cut[name] = torch.zeros_like(tensor)
            _leading(name, cut[name], rank).copy_(_leading(name, tensor, rank))
        else:
            cut[name] = tensor
    return cut


def _leading(name: str, tensor: "torch.Tensor", rank: int) -> "torch.Tensor":
    if name.endswith(A):
        return tensor[:rank]
    return tensor[:, :rank] if name.endswith(B) else tensor


def _cut_shape(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    if name.endswith(A):
        return (min(shape[0], rank), *shape[1:])
    return (shape[0], min(shape[1], rank)) if name.endswith(B) else shape
