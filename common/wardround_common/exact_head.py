"""The one-round exact head: the ridge classifier of the pooled features, from summed statistics.

With a frozen backbone, ridge regression of +-1 class targets on features needs only the Gram
matrix and the feature-target products. Both are sums over rows, so the hospitals' sums add up to
the sums of the pooled data, and the head solved from them *is* the pooled head. One round, no row
leaves. (Analytic federated learning, He et al. 2024; Fed3R, Fani et al. 2024, section 3.)

With features ``x`` and ``z = (x, 1)``, targets ``y`` in {-1, +1}^C and rows split in K folds::

    gram_k = sum_{rows in fold k} z z^T        products_k = sum_{rows in fold k} z y^T

    centred:  A = sum x x^T - n m m^T,   B = sum x y^T - n m u^T      (m, u: means)
    weights:  W = (A + alpha I)^-1 B,    bias = u - W^T m             (intercept not penalised)

The penalty ``alpha`` is chosen by K-fold cross-validation of the squared error, which the same
sums give in closed form: ``sum ||y - f(x)||^2 = n C - 2 tr(V^T products) + tr(V^T gram V)`` with
``V = (W; bias)``. This is the estimator of scikit-learn's ``RidgeClassifier``.

Not claimed: privacy of the sums themselves. They are statistics of a hospital's patients.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround_common.errors import RoundError
from wardround_common.types import TensorSpec
from wardround_common.wire.layout import Layout

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_CANDIDATES = np.logspace(-5.0, 2.0, 15)


def sums_layout(feature_dim: int, num_outputs: int, folds: int) -> Layout:
    """What a site sends: for each fold the upper triangle of its Gram matrix and its products."""
    width = feature_dim + 1
    triangle = width * (width + 1) // 2
    return Layout(
        tuple(
            tensor
            for fold in range(folds)
            for tensor in (
                TensorSpec(f"fold{fold}.gram", "float64", (triangle,)),
                TensorSpec(f"fold{fold}.products", "float64", (width, num_outputs)),
            )
        )
    )


def can_be_sums(layout: Layout, sums: FloatArray) -> bool:
    """Whether packed sums could be those of any data: no Gram matrix has a negative diagonal."""
    named = {spec.name: (spec, where) for spec, where in layout.slices()}
    for name, (_, where) in named.items():
        if name.endswith(".gram"):
            width = named[name.removesuffix("gram") + "products"][0].shape[0]
            rows = np.arange(width)
            if np.any(sums[where][rows * width - rows * (rows - 1) // 2] < 0.0):
                return False
    return True


class HeadSums:
    """A site's sums, filled batch by batch.

    Args:
        feature_dim: d.
        num_outputs: C.
        folds: K.
    """

    def __init__(self, feature_dim: int, num_outputs: int, folds: int) -> None:
        width = feature_dim + 1
        self._grams = np.zeros((folds, width, width))
        self._products = np.zeros((folds, width, num_outputs))

    def add(self, features: npt.NDArray[np.float32], targets: IntArray, folds: IntArray) -> None:
        """Add rows.

        Args:
            features: float32 [m, d].
            targets: int64 [m], class indices.
            folds: int64 [m], the fold of each row.
        """
        num_outputs = self._products.shape[2]
        rows = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], axis=1)
        signs = np.where(targets[:, None] == np.arange(num_outputs), 1.0, -1.0)
        for fold in np.unique(folds):
            mine = folds == fold
            self._grams[fold] += rows[mine].T @ rows[mine]
            self._products[fold] += rows[mine].T @ signs[mine]

    def packed(self) -> FloatArray:
        """The sums in the order of :func:`sums_layout`."""
        upper = np.triu_indices(self._grams.shape[1])
        parts = [
            part
            for gram, products in zip(self._grams, self._products, strict=True)
            for part in (gram[upper], products.ravel())
        ]
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class RidgeHead:
    """A solved head.

    Attributes:
        weight: float64 [C, d].
        bias: float64 [C].
        ridge: the penalty alpha that was used.
    """

    weight: FloatArray
    bias: FloatArray
    ridge: float


def solve_head(
    sums: FloatArray, feature_dim: int, num_outputs: int, folds: int, ridge: float | None
) -> RidgeHead:
    """The ridge classifier behind summed statistics.

    Args:
        sums: float64, the sum over sites of :meth:`HeadSums.packed`.
        feature_dim: d.
        num_outputs: C.
        folds: K.
        ridge: alpha, or None to choose it by cross-validation.

    Raises:
        RoundError: the sums are not those of any data (no rows, not symmetric positive).
    """
    grams, products = _unfold(sums, feature_dim, num_outputs, folds)
    gram, product = grams.sum(axis=0), products.sum(axis=0)
    if gram[-1, -1] < 1.0 or np.any(np.diagonal(gram) < 0.0):
        raise RoundError("the summed statistics belong to no data", code="head_sums")
    alpha = _choose(grams, products) if ridge is None else ridge
    (solution,) = _solve(gram, product, np.array([alpha]))
    return RidgeHead(solution[:-1].T.copy(), solution[-1].copy(), float(alpha))


def _unfold(
    sums: FloatArray, feature_dim: int, num_outputs: int, folds: int
) -> tuple[FloatArray, FloatArray]:
    width = feature_dim + 1
    upper = np.triu_indices(width)
    grams = np.zeros((folds, width, width))
    products = np.zeros((folds, width, num_outputs))
    for index, (spec, where) in enumerate(sums_layout(feature_dim, num_outputs, folds).slices()):
        fold, is_products = divmod(index, 2)
        if is_products:
            products[fold] = sums[where].reshape(spec.shape)
        else:
            grams[fold][upper] = sums[where]
            grams[fold] += np.triu(grams[fold], 1).T
    return grams, products


def _solve(gram: FloatArray, products: FloatArray, alphas: FloatArray) -> Iterator[FloatArray]:
    """``(W; bias)`` [d+1, C] for each alpha, from one eigendecomposition."""
    rows = gram[-1, -1]
    mean, target_mean = gram[:-1, -1] / rows, products[-1] / rows
    centred = gram[:-1, :-1] - rows * np.outer(mean, mean)
    centred_products = products[:-1] - rows * np.outer(mean, target_mean)
    values, vectors = np.linalg.eigh(centred)
    rotated = vectors.T @ centred_products
    for alpha in alphas:
        weight = vectors @ (rotated / (np.maximum(values, 0.0) + alpha)[:, None])
        yield np.vstack([weight, target_mean - mean @ weight])


def _choose(grams: FloatArray, products: FloatArray) -> float:
    """The candidate with the least cross-validated squared error; the larger one of equals."""
    gram, product = grams.sum(axis=0), products.sum(axis=0)
    num_features = max(gram.shape[0] - 1, 1)
    spread = np.trace(gram[:-1, :-1]) - np.sum(gram[:-1, -1] ** 2) / gram[-1, -1]
    alphas = _CANDIDATES * max(spread / num_features, np.finfo(np.float64).tiny)
    errors = np.zeros(len(alphas))
    for held_gram, held_products in zip(grams, products, strict=True):
        if gram[-1, -1] - held_gram[-1, -1] < 1.0:
            continue
        for index, solution in enumerate(_solve(gram - held_gram, product - held_products, alphas)):
            errors[index] += np.sum(solution * (held_gram @ solution)) - 2.0 * np.sum(
                solution * held_products
            )
    best = np.flatnonzero(errors <= errors.min() * (1 + 1e-12 * np.sign(errors.min())))
    return float(alphas[best.max()])
