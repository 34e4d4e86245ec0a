"""Warnings about the finished parts of a site: they are used, and somebody should know."""

from collections.abc import Hashable

import numpy as np

from wardround_client.data.findings import Finding
from wardround_common.modalities.base import (
    Examples,
    ImageInputs,
    Inputs,
    TableInputs,
    TextInputs,
    TokenInputs,
)
from wardround_common.spec.federation import TaskSpec
from wardround_common.types import sha256_hex


def part_warnings(
    train: Examples, validation: Examples, test: Examples, task: TaskSpec
) -> tuple[Finding, ...]:
    """One class only in training, no test part, equal inputs in training and test.

    Args:
        train: the training part, at least one example.
        validation: the validation part.
        test: the test part.
        task: the classes.
    """
    found: list[Finding] = []
    if task.kind == "classification" and len({int(target[0]) for target in train.targets}) == 1:
        message = "the training part has one class only; this site cannot learn to tell classes"
        found.append(Finding("one_class", f"{message} apart alone", None, len(train), error=False))
    if not len(test):
        message = "no subject is held out here; the report has no figures for this site"
        found.append(Finding("no_test_rows", message, None, 0, error=False))
    seen = {*input_keys(train.inputs), *input_keys(validation.inputs)}
    repeated = sum(key in seen for key in input_keys(test.inputs))
    if repeated:
        message = "test rows whose inputs also occur in training: copies, or too few columns"
        found.append(Finding("duplicate_rows", message, None, repeated, error=False))
    return tuple(found)


def input_keys(inputs: Inputs) -> list[Hashable]:
    """A value for each example, equal exactly when the inputs are."""
    if isinstance(inputs, TableInputs):
        filled = np.nan_to_num(inputs.numeric, nan=np.inf)
        pairs = zip(filled, inputs.categorical, strict=True)
        return [(numbers.tobytes(), codes.tobytes()) for numbers, codes in pairs]
    if isinstance(inputs, TextInputs):
        return list(inputs.texts)
    if isinstance(inputs, TokenInputs):
        return list(inputs.words)
    assert isinstance(inputs, ImageInputs)
    return [sha256_hex(np.ascontiguousarray(image).data) for image in inputs.pixels]
