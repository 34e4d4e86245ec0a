"""Tagged words as word pieces.

A word's tag is the target of its first piece; later pieces, special tokens and padding carry
none. A sentence of more pieces than fit is cut, and the words that lose their first piece have no
target at all: :meth:`TokenEncoder.words_without_target` names them, so that evaluation can count
their entities as missed instead of forgetting them.
"""

from collections.abc import Iterator

import numpy as np
import torch

from wardround_common.errors import DataError
from wardround_common.modalities.base import (
    IGNORED,
    Encoded,
    Examples,
    IntArray,
    TokenInputs,
    subjects_tensor,
)
from wardround_common.modalities.text import Tokenizer, padded, padded_ids, text_transform


class TokenEncoder:
    """Encodes sentences of tagged words.

    Args:
        tokenizer: the backbone's tokenizer.
        max_tokens: longer sentences are cut, in word pieces with special tokens; at least 8.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._pieces = tokenizer.cutting_at(max_tokens)

    @property
    def transform(self) -> str:
        """Tokenizer digest and length in canonical form."""
        return text_transform("tokens/1", self._tokenizer, self._max_tokens)

    def encode(self, examples: Examples) -> Encoded:
        """Encode all sentences.

        Args:
            examples: their inputs are ``TokenInputs``, their targets one class a word.

        Returns:
            ``input_ids`` and ``attention_mask`` int64 [n, T], T the longest of the set; targets
            int64 [n, T], ``IGNORED`` at every position that is not a word's first piece.

        Raises:
            DataError: the inputs are no tagged words, or a sentence has not one tag a word.
        """
        ids: list[list[int]] = []
        targets: list[list[int]] = []
        for row, (pieces, words) in enumerate(self._aligned(examples)):
            tags = examples.targets[row]
            ids.append(pieces)
            targets.append([IGNORED if word is None else int(tags[word]) for word in words])
        return Encoded(
            padded_ids(ids, self._tokenizer.pad_id),
            torch.from_numpy(padded(targets, IGNORED)),
            subjects_tensor(examples),
        )

    def words_without_target(self, examples: Examples) -> tuple[IntArray, ...]:
        """The words of each sentence that :meth:`encode` gives no target.

        They were cut off, or the tokenizer makes no piece of them (control characters).

        Returns:
            One int64 array a sentence: positions of words, ascending.

        Raises:
            DataError: as :meth:`encode`.
        """
        return tuple(
            np.setdiff1d(
                np.arange(len(examples.targets[row]), dtype=np.int64),
                np.array([word for word in words if word is not None], dtype=np.int64),
            )
            for row, (_, words) in enumerate(self._aligned(examples))
        )

    def num_words_without_target(self, examples: Examples) -> int:
        """How many words of all sentences :meth:`encode` gives no target."""
        return sum(len(words) for words in self.words_without_target(examples))

    def _aligned(self, examples: Examples) -> Iterator[tuple[list[int], list[int | None]]]:
        """For each sentence its piece ids and, at a word's first piece, the word's position."""
        sentences = _sentences(examples)
        batch = self._pieces.encode_batch(
            [list(words) for words in sentences], is_pretokenized=True
        )
        for encoding in batch:
            yield encoding.ids, _first_pieces(encoding.word_ids)


def _sentences(examples: Examples) -> tuple[tuple[str, ...], ...]:
    if not isinstance(examples.inputs, TokenInputs):
        raise DataError("the data is not tagged words (modality tokens)", code="wrong_modality")
    sentences = examples.inputs.words
    for row, (words, tags) in enumerate(zip(sentences, examples.targets, strict=True)):
        if len(words) != len(tags):
            raise DataError(
                f"sentence {row + 1} has {len(words)} words and {len(tags)} tags; give one a word",
                code="tags_misaligned",
            )
    return sentences


def _first_pieces(word_ids: list[int | None]) -> list[int | None]:
    """``word_ids`` with every piece but a word's first set to None."""
    before: int | None = None
    firsts: list[int | None] = []
    for word in word_ids:
        firsts.append(None if word == before else word)
        before = word
    return firsts
