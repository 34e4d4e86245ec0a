"""A text encoder of a few thousand parameters, saved as transformers saves the large ones."""

import json
from pathlib import Path

from wardround_common.backbones.store import file_digest
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import Digest

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "heart", "lung", "clear", "ace", "##tam", "##ol", "a")


def save_tokenizer(folder: Path) -> Path:
    """Write a WordPiece ``tokenizer.json`` whose own padding and truncation must be overruled."""
    special = [
        {"id": index, "content": piece, "special": True, "single_word": False, "lstrip": False}
        | {"rstrip": False, "normalized": False}
        for index, piece in enumerate(PIECES[:4])
    ]
    frame = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    document = {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None}
        | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        | {"strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": frame,
            "pair": frame,
            "special_tokens": {
                piece: {"id": piece, "ids": [PIECES.index(piece)], "tokens": [piece]}
                for piece in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: index for index, piece in enumerate(PIECES)},
        },
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    return path


def save_encoder(folder: Path, *, layers: int = 3, seed: int = 0) -> Digest:
    """Write config, weights and tokenizer; returns the digest of the weights."""
    import torch
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(
            BertConfig(
                vocab_size=len(PIECES),
                hidden_size=16,
                num_hidden_layers=layers,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=32,
            )
        )
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return file_digest(folder / "model.safetensors")


def text_federation(ref: str, sha256: str, **tables: object) -> FederationSpec:
    """A federation of one site that classifies documents."""
    return FederationSpec.model_validate(
        {
            "federation": {"name": "tiny", "sites": ("north",)},
            "data": {"modality": "text", "text": "report", "label": "finding", "max_tokens": 16},
            "task": {"kind": "classification", "labels": ("no", "yes")},
            "backbone": {"ref": ref, "sha256": sha256},
        }
        | tables
    )
