"""Mean and deviation of numeric columns, from sums that add up over sites."""

import numpy as np
import numpy.typing as npt

from wardround_common.types import TensorSpec
from wardround_common.wire.layout import Layout
from wardround_common.wire.step import TableMoments

FloatArray = npt.NDArray[np.float64]


def moments_layout(num_columns: int) -> Layout:
    """What a site sends: count, sum and sum of squares of each numeric column."""
    width = (num_columns,)
    return Layout(tuple(TensorSpec(n, "float64", width) for n in ("count", "sum", "squares")))


def moment_sums(columns: FloatArray) -> FloatArray:
    """A site's sums.

    Args:
        columns: float64 [n, a], NaN where a cell is empty.

    Returns:
        float64 [3, a].
    """
    present = ~np.isnan(columns)
    values = np.where(present, columns, 0.0)
    return np.stack([present.sum(axis=0), values.sum(axis=0), np.square(values).sum(axis=0)])


def can_be_moments(sums: FloatArray) -> bool:
    """Whether packed sums could be those of any data: no count or sum of squares is negative."""
    count, _, squares = sums.reshape(3, -1)
    return bool(np.all(count >= 0.0) and np.all(squares >= 0.0))


def moments_of(sums: FloatArray) -> TableMoments:
    """Mean and deviation (of the population, divisor n) from summed sums, float64 [3, a].

    A column without any value has mean 0; one without spread has deviation 1.
    """
    count, total, squares = sums
    filled = np.maximum(count, 1.0)
    mean = total / filled
    variance = np.maximum(squares / filled - mean**2, 0.0)
    # A constant column's variance is the rounding of its squares, not spread.
    constant = variance <= 1e-12 * np.maximum(mean**2, 1e-30)
    deviation = np.where(constant, 1.0, np.sqrt(np.where(constant, 1.0, variance)))
    return TableMoments(mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))
