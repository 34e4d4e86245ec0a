"""Tables as numbers: standardised numeric columns, then one-hot categories.

Arithmetic is float64 and cast once at the end, so every site computes the same bytes.
"""

import numpy as np
import torch

from wardround_common.canonical import canonical_bytes
from wardround_common.errors import DataError
from wardround_common.modalities.base import (
    Encoded,
    Examples,
    FloatArray,
    IntArray,
    Moments,
    TableInputs,
    subjects_tensor,
    targets_1d,
)
from wardround_common.spec.data import TabularData


class TableEncoder:
    """Encodes rows of a table.

    An empty numeric cell becomes the mean (0 after standardising; 0 where there are no moments);
    an empty categorical cell becomes zeros in all of its columns.

    Args:
        data: the declared columns.
        moments: mean and deviation of the numeric columns, in their order; None leaves values
            as they are.

    Raises:
        ValueError: the moments do not have one value for each numeric column.
    """

    def __init__(self, data: TabularData, moments: Moments | None) -> None:
        if moments is not None:
            shapes = {moments.mean.shape, moments.deviation.shape}
            if shapes != {(len(data.numeric),)}:
                raise ValueError(f"moments of {len(data.numeric)} columns expected, not {shapes}")
        self._numeric = data.numeric
        self._categories = tuple(data.categorical.items())
        self._moments = moments

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The encoded columns: numeric names, then ``column=value``."""
        one_hot = (f"{column}={value}" for column, values in self._categories for value in values)
        return (*self._numeric, *one_hot)

    @property
    def transform(self) -> str:
        """Columns, categories and moments in canonical form."""
        moments = self._moments and {
            "mean": self._moments.mean.tolist(),
            "deviation": self._moments.deviation.tolist(),
        }
        return canonical_bytes(
            {
                "encoder": "table/1",
                "numeric": self._numeric,
                "categorical": self._categories,
                "moments": moments,
            }
        ).decode()

    def encode(self, examples: Examples) -> Encoded:
        """Encode all rows.

        Args:
            examples: their inputs are ``TableInputs`` of the declared columns.

        Returns:
            ``values`` float32 [n, d] with d = ``len(feature_names)``; targets int64 [n].

        Raises:
            DataError: the inputs are no table, have other columns, or hold a value that is
                infinite or too large for float32.
        """
        inputs = examples.inputs
        if not isinstance(inputs, TableInputs):
            raise DataError("the data is not a table (modality tabular)", code="wrong_modality")
        self._check_columns(inputs)
        values = np.concatenate(
            [self._standardised(inputs.numeric), *self._one_hot(inputs.categorical)], axis=1
        )
        self._check_range(values)
        return Encoded(
            {"values": torch.from_numpy(values.astype(np.float32))},
            targets_1d(examples),
            subjects_tensor(examples),
        )

    def _standardised(self, numeric: FloatArray) -> FloatArray:
        values = numeric.astype(np.float64)
        if self._moments is not None:
            values = (values - self._moments.mean) / self._moments.deviation
        values[np.isnan(values)] = 0.0
        return values

    def _one_hot(self, categorical: IntArray) -> list[FloatArray]:
        """One float64 [n, number of values] for each categorical column."""
        return [
            (categorical[:, index, None] == np.arange(len(values))).astype(np.float64)
            for index, (_, values) in enumerate(self._categories)
        ]

    def _check_columns(self, inputs: TableInputs) -> None:
        found = (inputs.numeric.shape[1], inputs.categorical.shape[1])
        declared = (len(self._numeric), len(self._categories))
        if found != declared:
            raise DataError(
                f"the table has {found[0]} numeric and {found[1]} categorical columns; "
                f"data.numeric and data.categorical declare {declared[0]} and {declared[1]}",
                code="wrong_columns",
            )

    def _check_range(self, values: FloatArray) -> None:
        bad = np.flatnonzero((np.abs(values) > np.finfo(np.float32).max).any(axis=0))
        if bad.size:
            raise DataError(
                f"column {self.feature_names[bad[0]]!r} holds a value that is infinite or too "
                "large for float32; correct it in the data",
                code="not_finite",
            )
