"""Sums that do not depend on the order of their terms, in one pass and bounded memory.

Floating-point addition is not associative, so a mean that is folded in as updates arrive would
depend on which hospital answered first. Here every term is first split into *folds*: multiples of
fixed units u1 > u2 chosen from a bound on the terms, so that all partial sums within a fold are
multiples of its unit below 2^53 units, and therefore exact in float64. Exact addition commutes:
any order, any grouping, any number of threads gives the same bytes.

The splitting ``(x + C) - C`` with ``C = 1.5 * 2^52 * u`` and the choice of units follow Demmel and
Nguyen, "Parallel Reproducible Summation", IEEE Trans. Computers 64(7), 2015, sections 3 and 4,
with units fixed beforehand from the bound instead of found from the data.

Not claimed: a better result than float64. The rounding error of one term is at most half the
smallest unit, about ``bound * (terms * 2^-50)^folds``: relative to the bound, not to the term.
"""

import math
import threading

import numpy as np
import numpy.typing as npt
import torch

from wardround_common.wire.layout import Packed, flat_tensor

_BLOCK = 1 << 15
"""Values handled at a time, so that the scratch space stays in the second-level cache."""


class ExactSum:
    """The running sum of at most ``terms`` arrays with magnitudes at most ``bound``.

    Thread-safe: arrays may be added concurrently.

    Args:
        size: number of values.
        bound: largest magnitude of a (scaled) value; larger values are the caller's error.
        terms: largest number of arrays.
        folds: at least 1; see the module's note on resolution.
    """

    def __init__(self, size: int, *, bound: float, terms: int, folds: int = 2) -> None:
        growth = math.ceil(math.log2(max(terms, 1)))
        largest = math.frexp(bound)[1] + growth
        self._units = [
            math.ldexp(1.0, largest - 50 + fold * (growth - 50)) for fold in range(folds)
        ]
        self._folds = torch.zeros((folds, size), dtype=torch.float64)
        self._bound = bound
        self._terms = terms
        self._added = 0
        self._lock = threading.Lock()

    @property
    def num_added(self) -> int:
        """How many arrays have been added."""
        return self._added

    def add(self, values: Packed, scale: float = 1.0) -> None:
        """Add ``scale * values``.

        Args:
            values: [size], float32 or float64; finite, with ``|scale * values| <= bound``. A
                float32 value times an integer scale below 2^29 is exact in float64.
            scale: the term's weight.

        Raises:
            ValueError: more terms than were announced: the sum could lose exactness.
        """
        with self._lock:
            if self._added == self._terms:
                raise ValueError(f"announced {self._terms} terms, this is one more")
            self._added += 1
            source = flat_tensor(values)
            for start in range(0, source.numel(), _BLOCK):
                self._add_block(start, source[start : start + _BLOCK], scale)

    def _add_block(self, start: int, block: torch.Tensor, scale: float) -> None:
        rest = block.to(torch.float64)
        if scale != 1.0:
            rest = rest * scale
        where = slice(start, start + block.numel())
        for fold, unit in enumerate(self._units):
            anchor = 1.5 * 2.0**52 * unit
            part = (rest + anchor).sub_(anchor)
            self._folds[fold, where].add_(part)
            if fold + 1 < len(self._units):
                rest = rest - part

    def total(self) -> npt.NDArray[np.float64]:
        """The sum, float64 [size]; zeros when nothing was added."""
        total = self._folds[-1].clone()
        for fold in reversed(range(len(self._units) - 1)):
            total += self._folds[fold]
        array: npt.NDArray[np.float64] = total.numpy()
        return array
