"""The mean of the sites' adapters as what they do: of the products B A, at the federation's rank.

The mean of the factors, each apart (FedIT, Zhang et al., ICASSP 2024), is not the mean of the
products: ``mean(B) mean(A) != mean(B A)`` (Sun et al., "Improving LoRA in Privacy-preserving
Federated Learning", ICLR 2024, section 3). Here the next factors are the best rank-r ones of
``M = sum_k w_k B_k A_k`` (Eckart & Young 1936), as in FlexLoRA (Bai et al., "Federated Fine-tuning
of Large Language Models under Heterogeneous Tasks and Client Resources", NeurIPS 2024, section 3),
which forms M. M is never formed here: like the stacks of FLoRA (Wang et al., NeurIPS 2024,
section 3), ``M = [w_1 B_1 ... w_K B_K] [A_1; ...; A_K] = Q_B (R_B R_A^T) Q_A^T``, so that the
singular values of the small core ``R_B R_A^T`` are those of M.

The singular values s go evenly into both factors, ``B = U sqrt(s)`` and ``A = sqrt(s) V^T``, largest
first: the first r_k components are the best ones of rank r_k. The largest entry of every column of
``B`` is positive, so the signs are determined.

Not claimed: a unique result where two singular values are equal; the product is the best all the
same. Components below 1e-6 of the largest are dropped: ``B`` gets a zero column and ``A`` keeps its
row of before, as at LoRA's start, since two zero factors would never learn again.
"""

from collections.abc import Mapping

import numpy as np
import torch

from wardround_common.tuning.lora_factors import A, B, factor_pairs, layout_at_rank
from wardround_common.types import SiteId
from wardround_common.wire.layout import Layout, empty, unpack
from wardround_server.aggregation.base import Values
from wardround_server.aggregation.mean import WeightedMean

_NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest are noise of float32 factors."""


class LoraProduct:
    """See :class:`~wardround_server.aggregation.base.Aggregation`; remembers nothing.

    Keeps the sites' factors of one round, and one accumulator for all other tensors.

    Args:
        layout: of the global state: both factors of each adapter at the federation's rank, and
            others, which get the weighted mean.
        ranks: site -> its rank where it is smaller than the federation's.
    """

    def __init__(self, layout: Layout, ranks: Mapping[SiteId, int]) -> None:
        self._layout = layout
        self._ranks = dict(ranks)
        self._pairs = factor_pairs(layout)
        factors = {spec.name for pair in self._pairs.values() for spec in pair}
        self._others = Layout(tuple(t for t in layout.tensors if t.name not in factors))
        self._factors = factors
        self._mean = WeightedMean(self._others.num_values)
        self._folded: list[tuple[int, dict[str, torch.Tensor]]] = []

    def fold(self, site: SiteId, update: Values, num_subjects: int) -> None:
        """Keep the changes of the factors, and add ``num_subjects`` times those of the others."""
        rank = self._ranks.get(site)
        layout = self._layout if rank is None else layout_at_rank(self._layout, rank)
        tensors = unpack(layout, update)
        self._folded.append((num_subjects, {n: tensors[n].clone() for n in sorted(self._factors)}))
        others = [tensors[spec.name].ravel() for spec in self._others.tensors]
        self._mean.add(torch.cat(others).numpy() if others else update[:0], num_subjects)

    def finish(self, state: Values, memory: Values) -> tuple[Values, Values]:
        """Best factors of the mean product; ``state + mean`` for all else."""
        moved = empty(self._layout)
        now, before = unpack(self._layout, moved), unpack(self._layout, state)
        means = unpack(self._others, np.asarray(self._mean.take().numpy()))
        for name, mean in means.items():
            torch.add(before[name], mean, out=now[name])
        total = sum(weight for weight, _ in self._folded)
        for layer in self._pairs:
            start_a, start_b = before[layer + A], before[layer + B]
            terms = []
            for weight, changes in self._folded:
                a, b = changes[layer + A], changes[layer + B]
                rank = a.shape[0]
                terms.append((weight / total, start_b[:, :rank] + b, start_a[:rank] + a))
            b, a = best_factors(terms, start_a)
            now[layer + A].copy_(a)
            now[layer + B].copy_(b)
        self._folded.clear()
        return np.asarray(moved, dtype=np.float32), memory


def best_factors(
    terms: list[tuple[float, torch.Tensor, torch.Tensor]], fallback: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best factors of rank r of ``sum_k w_k B_k A_k``, without forming it.

    Args:
        terms: (w_k, B_k [d_out, r_k], A_k [r_k, d_in]); float32, their order decides the last bits.
        fallback: [r, d_in]: rows of ``A`` for components without weight.

    Returns:
        ``B`` [d_out, r] and ``A`` [r, d_in], float32, by falling singular value.
    """
    rank = fallback.shape[0]
    left = torch.cat([b * weight for weight, b, _ in terms], dim=1)
    right = torch.cat([a for _, _, a in terms], dim=0).T
    reflect_b, scale_b = torch.geqrf(left)
    reflect_a, scale_a = torch.geqrf(right)
    upper_b = reflect_b[: min(left.shape)].triu().double()
    upper_a = reflect_a[: min(right.shape)].triu().double()
    u, s, vh = torch.linalg.svd(upper_b @ upper_a.T, full_matrices=False)
    kept = min(rank, s.numel())
    kept = int((s[:kept] > _NEGLIGIBLE * s[0]).sum()) if float(s[0]) > 0 else 0
    roots = s[:kept].sqrt()
    b_kept = _rotate(reflect_b, scale_b, u[:, :kept] * roots)
    a_kept = _rotate(reflect_a, scale_a, vh[:kept].T * roots)
    largest = b_kept.abs().argmax(dim=0, keepdim=True)
    signs = torch.where(b_kept.gather(0, largest) < 0, -1.0, 1.0)
    b = torch.zeros(left.shape[0], rank)
    a = fallback.clone()
    b[:, :kept] = b_kept * signs
    a[:kept] = (a_kept * signs).T
    return b, a


def _rotate(reflectors: torch.Tensor, scales: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """``Q @ inner`` for Q as Householder reflectors, Q not formed; inner float64 [R, r]."""
    padded = torch.zeros(reflectors.shape[0], inner.shape[1])
    padded[: inner.shape[0]] = inner
    return torch.ormqr(reflectors, scales, padded)
