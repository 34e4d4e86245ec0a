"""The split by subject."""

import numpy as np
import pytest

from wardround_client.data.split import hold_out, take_validation, train_and_test
from wardround_client.data.subjects import example_classes, tabulate
from wardround_common.modalities.base import Examples, TextInputs
from wardround_common.spec.data import TextData


def _examples(subjects: list[int], labels: list[int]) -> Examples:
    texts = TextInputs(tuple(str(row) for row in range(len(subjects))))
    targets = tuple(np.array([label], dtype=np.int64) for label in labels)
    return Examples(texts, targets, np.array(subjects, dtype=np.int64))


def _data(**split: object) -> TextData:
    values = {"modality": "text", "text": "t", "label": "l", "validation_fraction": 0.25}
    return TextData.model_validate(values | {"split": {"kind": "random"} | split})


def _parts(examples: Examples, data: TextData) -> list[list[int]]:
    rows = np.arange(len(examples), dtype=np.int64)
    classes = example_classes(examples)
    train, test = train_and_test(rows, examples, classes, data, None)
    train, validation = take_validation(train, examples, classes, data)
    return [train.tolist(), validation.tolist(), test.tolist()]


def test_no_subject_is_in_two_parts_and_no_row_is_lost():
    rng = np.random.default_rng(1)
    subjects = rng.integers(0, 40, 200).tolist()
    examples = _examples(subjects, rng.integers(0, 3, 200).tolist())
    parts = _parts(examples, _data())
    assert sorted(row for part in parts for row in part) == list(range(200))
    owners = [{subjects[row] for row in part} for part in parts]
    assert all(owners)
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]


def test_rows_alone_decide_the_split_not_the_codes_of_the_subjects():
    labels = [0, 1] * 20
    codes = [row // 2 for row in range(40)]
    other = [900 - 7 * code for code in codes]
    assert _parts(_examples(codes, labels), _data()) == _parts(_examples(other, labels), _data())


def test_another_seed_gives_another_split_and_the_same_seed_the_same():
    examples = _examples(list(range(60)), [0, 1] * 30)
    assert _parts(examples, _data(seed=1)) == _parts(examples, _data(seed=1))
    assert _parts(examples, _data(seed=1)) != _parts(examples, _data(seed=2))


def test_stratifying_keeps_the_share_of_each_class():
    classes = np.array([0] * 80 + [1] * 20)
    held = hold_out(classes, 0.3, stratify=True, seed=0)
    assert (held[:80].sum(), held[80:].sum()) == (24, 6)


def test_a_class_with_one_subject_stays_in_training():
    classes = np.array([0] * 9 + [1])
    for seed in range(20):
        assert not hold_out(classes, 0.5, stratify=True, seed=seed)[9]
    assert any(hold_out(classes, 0.5, stratify=False, seed=seed)[9] for seed in range(20))


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("stratify", [True, False])
def test_both_sides_have_a_subject_even_when_every_class_has_only_one(count, fraction, stratify):
    held = hold_out(np.arange(count), fraction, stratify=stratify, seed=0)
    assert 0 < held.sum() < count


def test_a_single_subject_is_never_held_out():
    assert not hold_out(np.array([1]), 0.9, stratify=True, seed=0).any()


def test_no_validation_is_taken_when_none_is_wanted():
    data = _data().model_copy(update={"validation_fraction": 0.0})
    assert _parts(_examples(list(range(10)), [0, 1] * 5), data)[1] == []


def test_subjects_are_numbered_by_first_appearance_with_the_class_of_their_first_row():
    table = tabulate(np.array([5, 2, 5, 9]), np.array([1, 0, 0, 2]))
    assert table.codes.tolist() == [0, 1, 0, 2]
    assert table.classes.tolist() == [1, 0, 2]


def test_the_class_of_a_sentence_is_its_first_entity():
    targets = ([0, 0, 3, 1], [0, 0], [2])
    examples = Examples(
        TextInputs(("", "", "")),
        tuple(np.array(target, dtype=np.int64) for target in targets),
        np.arange(3),
    )
    assert example_classes(examples).tolist() == [3, 0, 2]
