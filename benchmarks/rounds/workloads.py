"""What is exchanged: the federation file of ours, and the same number of tensors for the plain app.

Ours trains, since it has nothing else to send: one step on a few short texts. The time that the
slower site says it trained is taken out of each round. The plain app's client adds a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from wardround_common.backbones.store import file_digest

SITES = ("north", "south")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "heart", "lung", "clear", "large")
_TEXTS = ("heart clear", "lung clear", "heart large", "lung large")


@dataclass(frozen=True, slots=True)
class Workload:
    """A text encoder whose every parameter is trained and exchanged.

    Attributes:
        width: of the encoder.
        layers: 16 tensors each.
        rounds: how many are measured, after the first.
    """

    width: int
    layers: int
    rounds: int

    @property
    def num_tensors(self) -> int:
        """Of the encoder; the head adds two."""
        return 5 + 16 * self.layers

    @property
    def num_values(self) -> int:
        """About as many as the encoder has: 12 w^2 a layer."""
        return 12 * self.width**2 * self.layers


SMALL = Workload(width=72, layers=1, rounds=12)
"""0.25 MB."""
LARGE = Workload(width=216, layers=20, rounds=6)
"""45 MB in 320 tensors and five."""


def write_federation(
    workload: Workload, folder: Path, rounds: int, sites: Sequence[str] = SITES
) -> Path:
    """The federation file, the encoder and each site's texts.

    Args:
        workload: what is exchanged.
        folder: made if absent; a site's texts are in ``SITE.csv``.
        rounds: number of rounds.
        sites: who takes part.
    """
    encoder = folder / "encoder"
    _save_encoder(workload, encoder)
    for site in sites:
        rows = [f"{site}{row},{_TEXTS[row % 4]},{('no', 'yes')[row % 2]}" for row in range(16)]
        (folder / f"{site}.csv").write_text("\n".join(["id,report,finding", *rows]) + "\n")
    path = folder / "federation.toml"
    federation = {
        "federation": {"name": "rounds", "sites": list(sites), "seed": 1},
        "data": {
            "modality": "text",
            "subject": "id",
            "text": "report",
            "label": "finding",
            "max_tokens": 8,
            "validation_fraction": 0.0,
        },
        "task": {"kind": "classification", "labels": ["no", "yes"]},
        "backbone": {
            "ref": f"hf:{encoder}",
            "sha256": str(file_digest(encoder / "model.safetensors")),
        },
        "tuning": {"method": "full"},
        "training": {"batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.01}},
        "exact_head": {"enabled": False},
        "evaluation": {"compare": False, "bootstrap": 100},
        "rounds": {"count": rounds},
    }
    path.write_text(tomli_w.dumps(federation))
    return path


def _save_encoder(workload: Workload, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=workload.width,
        num_hidden_layers=workload.layers,
        num_attention_heads=4,
        intermediate_size=4 * workload.width,
        max_position_embeddings=16,
    )
    model = BertModel(config, add_pooling_layer=False)
    model.save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=WORDS[1]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
