"""Named entities in tagged words: loss and strict entity F1.

An entity is found where its first word, its last word and its type are all right. F1 is
micro-averaged over all entities: 2 tp / (2 tp + fp + fn). The decoding is that of the CoNLL
scorer: an I- tag that follows O, another type or the start of a sentence opens an entity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from wardround_common.modalities.base import IGNORED
from wardround_common.tasks.base import Calibration, IntArray
from wardround_common.tasks.loss import cross_entropy

METRICS: Final = ("entity_f1",)


@dataclass(frozen=True, slots=True)
class Spans:
    """Entities in a run of sentences, in order.

    Attributes:
        sentence: int64 [k], the sentence of each entity.
        start: int64 [k], its first word, counted over all sentences.
        end: int64 [k], its last word.
        kind: int64 [k], its type.
    """

    sentence: IntArray
    start: IntArray
    end: IntArray
    kind: IntArray


def spans_of(tags: IntArray, sentences: IntArray) -> Spans:
    """Decode tags leniently.

    Args:
        tags: int64 [w], the words of all sentences one after the other: 0 is O, 2t + 1 begins an
            entity of type t, 2t + 2 continues it.
        sentences: int64 [w], the sentence of each word, ascending.
    """
    inside = tags > 0
    kind = np.where(inside, (tags - 1) // 2, -1)
    same_sentence = np.zeros(len(tags), dtype=np.bool_)
    same_sentence[1:] = sentences[1:] == sentences[:-1]
    continues = np.zeros(len(tags), dtype=np.bool_)
    continues[1:] = same_sentence[1:] & (kind[1:] == kind[:-1]) & (tags[1:] % 2 == 0)
    opens = inside & ~continues
    closes = inside.copy()
    closes[:-1] &= ~(inside[1:] & continues[1:])
    start = np.flatnonzero(opens)
    return Spans(sentences[start], start, np.flatnonzero(closes), kind[start])


@dataclass(frozen=True, slots=True)
class EntityPredictions:
    """How many entities one model found, invented and missed in each of n sentences.

    Attributes:
        subjects: int64 [n], the patient (or document) of each sentence.
        counts: int64 [n, 3], true positives, false positives, false negatives.
        finite: False for a model that diverged: every metric is then undefined.
    """

    subjects: IntArray
    counts: IntArray
    finite: bool = True

    def __len__(self) -> int:
        return len(self.subjects)

    def metric(self, name: str, rows: IntArray | None = None) -> float | None:
        """Strict F1 on ``rows``; None where there is no entity, neither true nor predicted.

        Args:
            name: ``entity_f1``.
            rows: int64 indices, repetition allowed; all if absent.

        Raises:
            ValueError: there is no such metric.
        """
        if name not in METRICS:
            raise ValueError(f"no metric {name!r} for entities; one of {', '.join(METRICS)}")
        chosen = self.counts if rows is None else self.counts[rows]
        found, invented, missed = (int(total) for total in chosen.sum(axis=0))
        total = 2 * found + invented + missed
        return 2 * found / total if total and self.finite else None

    def reliability(self, bins: int = 10) -> None:  # noqa: ARG002  the contract's signature
        """None: an entity has no single confidence."""
        return

    def calibration(self) -> Calibration | None:
        """None: an entity has no single confidence."""
        return None


@dataclass(frozen=True, slots=True)
class EntityTask:
    """A tag for each word.

    Attributes:
        types: the entity types; tags are O, then B and I of each type in order.
    """

    types: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """One logit a tag."""
        return 1 + 2 * len(self.types)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the default first."""
        return METRICS

    def loss(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        class_weights: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Mean cross-entropy over first word pieces (shapes as in the ``Task`` protocol)."""
        return cross_entropy(logits, targets, class_weights, label_smoothing)

    def cut_off(self, full: Sequence[IntArray], kept: IntArray) -> IntArray:
        """Entities that start beyond each sentence's cut: :func:`missed_entities`."""
        return missed_entities(full, kept)

    def predictions(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        subjects: torch.Tensor,
        missed: IntArray | None = None,
    ) -> EntityPredictions:
        """Score logits word by word; a word is a position whose target is not -100.

        Args:
            logits: float [n, T, C].
            targets: int64 [n, T].
            subjects: int64 [n].
            missed: int64 [n], entities beyond the cut of each sentence (:func:`missed_entities`);
                they count as false negatives. None if no sentence was cut.
        """
        words = (targets != IGNORED).cpu()
        sentences = torch.nonzero(words)[:, 0].numpy()
        finite = bool(torch.isfinite(logits).all())
        tagged = logits.detach().argmax(dim=-1).cpu()[words].numpy()
        counts = match_counts(
            spans_of(targets.cpu()[words].numpy(), sentences),
            spans_of(tagged, sentences),
            len(targets),
        )
        if missed is not None:
            counts[:, 2] += missed
        return EntityPredictions(subjects.cpu().numpy(), counts, finite)


def match_counts(true: Spans, predicted: Spans, num_sentences: int) -> IntArray:
    """True positives, false positives and false negatives of each sentence: int64 [n, 3]."""
    both = np.isin(_keys(true, predicted), _keys(predicted, true))
    found = np.bincount(true.sentence[both], minlength=num_sentences)
    num_true = np.bincount(true.sentence, minlength=num_sentences)
    num_predicted = np.bincount(predicted.sentence, minlength=num_sentences)
    return np.stack([found, num_predicted - found, num_true - found], axis=1).astype(np.int64)


def _keys(spans: Spans, others: Spans) -> IntArray:
    """One number for each entity, comparable with those of ``others``."""
    words = 1 + max((int(part.max()) for part in (spans.end, others.end) if len(part)), default=0)
    kinds = 1 + max((int(part.max()) for part in (spans.kind, others.kind) if len(part)), default=0)
    return (spans.start * words + spans.end) * kinds + spans.kind


def missed_entities(full: Sequence[IntArray], kept: IntArray) -> IntArray:
    """The entities of each sentence that start beyond its cut.

    Args:
        full: n arrays of int64 tags, one a word, uncut.
        kept: int64 [n], the number of words that the encoder kept.

    Returns:
        int64 [n].
    """
    cut = (
        spans_of(tags, np.zeros(len(tags), dtype=np.int64)).start >= num_words
        for tags, num_words in zip(full, kept, strict=True)
    )
    return np.array([int(beyond.sum()) for beyond in cut], dtype=np.int64)
