"""Patients as small codes, and the class by which they are dealt out."""

from dataclasses import dataclass

import numpy as np

from wardround_common.modalities.base import Examples, IntArray


@dataclass(frozen=True, slots=True)
class SubjectTable:
    """The patients of some rows.

    Attributes:
        codes: int64 [n], each row's patient as 0, 1, ... in order of first appearance.
        classes: int64 [num_subjects], the class of each patient's first row.
    """

    codes: IntArray
    classes: IntArray

    def __len__(self) -> int:
        return len(self.classes)


def tabulate(subjects: IntArray, classes: IntArray) -> SubjectTable:
    """Number the patients of n rows by first appearance.

    The numbering depends on the rows alone, so a hospital with a file of its own and a simulated
    one that holds the same rows of a shared file draw the same split.

    Args:
        subjects: int64 [n], equal code, same patient.
        classes: int64 [n], class of each row.
    """
    _, first, inverse = np.unique(subjects, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return SubjectTable(rank[inverse.reshape(-1)], classes[first[order]])


def example_classes(examples: Examples) -> IntArray:
    """One class an example, int64 [n]: its label, or for tagged words the first tag but O."""
    return np.array([_class(target) for target in examples.targets], dtype=np.int64)


def _class(target: IntArray) -> int:
    """The first non-zero entry where there are several, else the label."""
    if len(target) == 1:
        return int(target[0])
    tagged = np.flatnonzero(target)
    return int(target[tagged[0]]) if len(tagged) else 0
