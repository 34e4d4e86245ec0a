"""Documents as token ids.

The tokenizer is the ``tokenizer.json`` that lies beside the backbone's weights, read as data: no
code of the model's author runs and nothing is looked up elsewhere. Its digest is part of the
encoder's transform.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wardround_common.canonical import canonical_bytes
from wardround_common.errors import BackboneError, DataError
from wardround_common.modalities.base import (
    Encoded,
    Examples,
    TextInputs,
    subjects_tensor,
    targets_1d,
)
from wardround_common.types import Digest, sha256_hex


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer file.

    Attributes:
        path: the ``tokenizer.json``.
        digest: SHA-256 of the file.
        pad_id: the id that fills the end of short rows.
    """

    path: Path
    digest: Digest
    pad_id: int

    @classmethod
    def read(cls, path: Path, pad_id: int) -> "Tokenizer":
        """The tokenizer in ``path``.

        Raises:
            BackboneError: the file cannot be read.
        """
        try:
            return cls(path, sha256_hex(path.read_bytes()), pad_id)
        except OSError as error:
            raise BackboneError(
                f"{path}: the tokenizer cannot be read ({error.strerror}); save it there with "
                "tokenizer.save_pretrained(FOLDER)",
                code="tokenizer_missing",
            ) from error

    def cutting_at(self, max_tokens: int) -> Any:
        """A ``tokenizers.Tokenizer`` of its own that cuts at ``max_tokens`` and never pads.

        Raises:
            BackboneError: the file is not a tokenizer.
        """
        from transformers import PreTrainedTokenizerFast

        try:
            backend = PreTrainedTokenizerFast(tokenizer_file=str(self.path)).backend_tokenizer
        except Exception as error:
            raise BackboneError(
                f"{self.path}: not a tokenizer file ({error})", code="tokenizer_malformed"
            ) from error
        backend.no_padding()
        backend.enable_truncation(max_tokens)
        return backend


class TextEncoder:
    """Encodes documents.

    Args:
        tokenizer: the backbone's tokenizer.
        max_tokens: longer documents are cut, special tokens included; at least 8.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._pieces = tokenizer.cutting_at(max_tokens)

    @property
    def transform(self) -> str:
        """Tokenizer digest and length in canonical form."""
        return text_transform("text/1", self._tokenizer, self._max_tokens)

    def encode(self, examples: Examples) -> Encoded:
        """Encode all documents.

        Args:
            examples: their inputs are ``TextInputs``.

        Returns:
            ``input_ids`` and ``attention_mask`` int64 [n, T], filled at the end to the longest
            of the set (T <= max_tokens); targets int64 [n].

        Raises:
            DataError: the inputs are no documents.
        """
        if not isinstance(examples.inputs, TextInputs):
            raise DataError("the data is not documents (modality text)", code="wrong_modality")
        rows = [encoding.ids for encoding in self._pieces.encode_batch(list(examples.inputs.texts))]
        return Encoded(
            padded_ids(rows, self._tokenizer.pad_id),
            targets_1d(examples),
            subjects_tensor(examples),
        )


def text_transform(kind: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    """The canonical description of an encoding by word pieces."""
    return canonical_bytes(
        {
            "encoder": kind,
            "tokenizer": tokenizer.digest,
            "pad_id": tokenizer.pad_id,
            "max_tokens": max_tokens,
        }
    ).decode()


def padded_ids(rows: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Ids and attention mask, int64 [n, T] each, T the longest row and at least 1."""
    ids = padded(rows, pad_id)
    mask = padded([[1] * len(row) for row in rows], 0)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def padded(rows: list[list[int]], fill: int) -> npt.NDArray[np.int64]:
    """Rows of different length as int64 [n, T], ``fill`` at their ends."""
    longest = max((len(row) for row in rows), default=1)
    table = np.full((len(rows), max(longest, 1)), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table
