import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_common.tasks.entities import EntityTask, missed_entities

TASK = EntityTask(("drug", "disease"))
OUT, B_DRUG, I_DRUG, B_DIS, I_DIS = range(5)


def scored(true: list[list[int]], predicted: list[list[int]], **more: object):
    """Predictions that tag words as said; every second position is a later word piece."""
    width = 2 * max(len(tags) for tags in true)
    targets = torch.full((len(true), width), -100)
    logits = torch.randn(len(true), width, 5)
    for row, (tags, found) in enumerate(zip(true, predicted, strict=True)):
        for word, (tag, guess) in enumerate(zip(tags, found, strict=True)):
            targets[row, 2 * word] = tag
            logits[row, 2 * word] = torch.eye(5)[guess] * 20
    return TASK.predictions(logits, targets, torch.arange(len(true)), **more)


def plain_spans(tags: list[int]) -> set[tuple[int, int, int]]:
    """An independent decoder: one word after the other."""
    spans, start, kind = set(), None, None
    for at, tag in enumerate([*tags, OUT]):
        now = None if tag == OUT else (tag - 1) // 2
        if start is not None and (now != kind or tag % 2 == 1):
            spans.add((start, at - 1, kind))
            start = None
        if now is not None and start is None:
            start, kind = at, now
    return spans


SENTENCE = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9)


@given(st.lists(SENTENCE, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_counts_equal_those_of_a_plain_decoder(sentences):
    true = [[pair[0] for pair in sentence] for sentence in sentences]
    predicted = [[pair[1] for pair in sentence] for sentence in sentences]
    expected = []
    for tags, guess in zip(true, predicted, strict=True):
        gold, found = plain_spans(tags), plain_spans(guess)
        expected.append([len(gold & found), len(found - gold), len(gold - found)])
    assert scored(true, predicted).counts.tolist() == expected


def test_an_entity_needs_its_exact_words_and_type():
    true = [[B_DRUG, I_DRUG, OUT, B_DIS]]
    assert scored(true, [[B_DRUG, I_DRUG, OUT, B_DIS]]).metric("entity_f1") == 1.0
    assert scored(true, [[B_DRUG, OUT, OUT, B_DIS]]).metric("entity_f1") == 0.5
    assert scored(true, [[B_DIS, I_DIS, OUT, B_DIS]]).metric("entity_f1") == 0.5
    assert scored(true, [[OUT, OUT, OUT, OUT]]).metric("entity_f1") == 0.0


def test_an_inside_tag_without_a_beginning_opens_an_entity():
    assert scored([[B_DRUG, I_DRUG]], [[I_DRUG, I_DRUG]]).metric("entity_f1") == 1.0
    assert scored([[B_DRUG, B_DIS]], [[B_DRUG, I_DIS]]).metric("entity_f1") == 1.0


def test_two_adjacent_entities_of_one_type_are_two():
    assert scored([[B_DRUG, B_DRUG]], [[B_DRUG, B_DRUG]]).counts.tolist() == [[2, 0, 0]]
    assert scored([[B_DRUG, B_DRUG]], [[B_DRUG, I_DRUG]]).counts.tolist() == [[0, 1, 2]]


def test_an_entity_does_not_run_on_into_the_next_sentence():
    found = scored([[OUT, B_DRUG], [I_DRUG, OUT]], [[OUT, B_DRUG], [I_DRUG, OUT]])
    assert found.counts.tolist() == [[1, 0, 0], [1, 0, 0]]


def test_f1_without_any_entity_is_undefined():
    assert scored([[OUT, OUT]], [[OUT, OUT]]).metric("entity_f1") is None
    assert scored([[OUT, OUT]], [[OUT, B_DIS]]).metric("entity_f1") == 0.0


def test_f1_of_resampled_sentences_is_that_of_the_repeated_sentences():
    true = [[B_DRUG, OUT], [B_DIS, I_DIS], [OUT, B_DRUG]]
    guess = [[B_DRUG, OUT], [B_DIS, OUT], [B_DIS, B_DRUG]]
    rows = np.array([2, 2, 0])
    repeated = scored([true[row] for row in rows], [guess[row] for row in rows])
    found = scored(true, guess).metric("entity_f1", rows)
    assert found == pytest.approx(repeated.metric("entity_f1"))


def test_entities_beyond_the_cut_count_as_missed():
    full = [np.array([B_DRUG, OUT, B_DIS, I_DIS]), np.array([OUT, B_DRUG, I_DRUG, OUT])]
    missed = missed_entities(full, np.array([2, 2]))
    assert missed.tolist() == [1, 0]
    whole = scored([[B_DRUG, OUT], [OUT, B_DRUG]], [[B_DRUG, OUT], [OUT, B_DRUG]])
    cut = scored([[B_DRUG, OUT], [OUT, B_DRUG]], [[B_DRUG, OUT], [OUT, B_DRUG]], missed=missed)
    assert whole.metric("entity_f1") == 1.0
    assert cut.metric("entity_f1") == pytest.approx(2 * 2 / (2 * 2 + 1))


def test_a_model_that_diverged_has_no_f1():
    logits = torch.zeros(1, 2, 5)
    targets = torch.tensor([[B_DRUG, OUT]])
    assert TASK.predictions(logits, targets, torch.arange(1)).metric("entity_f1") == 0.0
    logits[0, 1, 0] = float("inf")
    assert TASK.predictions(logits, targets, torch.arange(1)).metric("entity_f1") is None


def test_loss_ignores_later_word_pieces():
    logits = torch.randn(2, 4, 5)
    targets = torch.tensor([[1, -100, 2, -100], [0, -100, -100, 3]])
    changed = logits.clone()
    changed[targets == -100] = 9.0
    assert torch.equal(TASK.loss(logits, targets), TASK.loss(changed, targets))


def test_an_unknown_metric_is_refused_by_name():
    with pytest.raises(ValueError, match="accuracy"):
        scored([[OUT]], [[OUT]]).metric("accuracy")
