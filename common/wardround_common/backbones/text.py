"""Text backbones: an encoder as transformers saves it, read without code and without a hub.

``config.json`` names one of transformers' own architectures, ``model.safetensors`` holds the
weights, ``tokenizer.json`` the tokenizer. Every parameter must come from the file; heads and
poolers that the file holds beside the encoder are left out.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from wardround_common.backbones.base import LoadedBackbone
from wardround_common.backbones.blocks import find_blocks
from wardround_common.backbones.image import read_tensors
from wardround_common.errors import BackboneError, ConfigError
from wardround_common.modalities.text import TextEncoder, Tokenizer
from wardround_common.modalities.tokens import TokenEncoder
from wardround_common.types import Digest

WEIGHTS: Final = "model.safetensors"
_REFUSED_KEYS: Final = ("auto_map", "quantization_config")


class TextBackbone(nn.Module):
    """Token ids through an encoder.

    Attributes:
        net: the encoder.
        pooled: True for one feature vector a document, False for one a token.
    """

    def __init__(self, net: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.net = net
        self.pooled = pooled

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Features of documents or tokens.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, T], 1 for tokens and 0 for filling.

        Returns:
            float32 [B, d], the mean over each row's tokens; or float32 [B, T, d].
        """
        output = self.net(input_ids=input_ids, attention_mask=attention_mask)
        return self.features_of(output.last_hidden_state, attention_mask)

    def features_of(
        self, states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The features in the encoder's last states, [B, T, d]; a mask is needed to pool them."""
        states = states.float()
        if not self.pooled:
            return states
        assert attention_mask is not None
        weights = attention_mask.to(states.dtype).unsqueeze(-1)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def load_text(
    folder: Path, digest: Digest, max_tokens: int | None, *, tagged: bool
) -> LoadedBackbone:
    """A text backbone with its weights.

    Args:
        folder: holds ``config.json``, ``model.safetensors`` and ``tokenizer.json``.
        digest: of ``model.safetensors``, already checked.
        max_tokens: documents or sentences are cut there; None takes what the encoder allows.
        tagged: features of each token instead of each document.

    Raises:
        BackboneError: a file is missing or damaged, asks for code of its own, or does not hold
            every parameter.
        ConfigError: ``max_tokens`` is more than the encoder's positions.
    """
    config = _config(folder)
    positions = min(int(getattr(config, "max_position_embeddings", None) or 512), 512)
    if max_tokens is not None and max_tokens > positions:
        raise ConfigError(
            f"data.max_tokens = {max_tokens}: this backbone has {positions} positions",
            code="max_tokens",
        )
    net = _net(config, folder)
    tokenizer = Tokenizer.read(
        folder / "tokenizer.json", int(getattr(config, "pad_token_id", None) or 0)
    )
    encoder = (TokenEncoder if tagged else TextEncoder)(tokenizer, max_tokens or positions)
    return LoadedBackbone(
        module=TextBackbone(net, pooled=not tagged).eval().requires_grad_(False),
        feature_dim=int(config.hidden_size),
        blocks=find_blocks(net, "net."),
        digest=digest,
        encoder=encoder,
    )


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        keys = json.loads(path.read_bytes())
        refused = [key for key in _REFUSED_KEYS if key in keys]
    except (OSError, ValueError, TypeError) as error:
        raise BackboneError(
            f"{path}: missing or not JSON ({error})", code="backbone_missing"
        ) from error
    if refused:
        raise BackboneError(
            f"{path}: {refused[0]!r} asks for code or storage beyond plain weights; save the "
            "encoder again without it",
            code="backbone_code",
        )
    if keys.get("is_encoder_decoder"):
        raise BackboneError(
            f"{path}: an encoder with a decoder; save its encoder alone",
            code="backbone_unsupported",
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            f"{path}: transformers does not know this configuration ({error})",
            code="backbone_unknown",
        ) from error


def _net(config: Any, folder: Path) -> nn.Module:
    """The encoder with every parameter from the file, without a pooler."""
    from transformers import AutoModel

    try:
        with torch.random.fork_rng(devices=[]):
            net: nn.Module = AutoModel.from_config(config, trust_remote_code=False)
    except (ValueError, TypeError, AttributeError) as error:
        raise BackboneError(
            f"{folder / 'config.json'}: no encoder can be built from it ({error})",
            code="backbone_unknown",
        ) from error
    if isinstance(getattr(net, "pooler", None), nn.Module):
        net.pooler = None  # type: ignore[assignment]  # the models skip a pooler that is None
    net = net.float()
    _fill(net, read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return net


def _fill(net: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = net.state_dict()
    prefix = f"{getattr(net, 'base_model_prefix', '')}."
    named = {
        name if name in own else name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
    }
    missing = [name for name in own if name not in named]
    shapes = [name for name in own if name in named and named[name].shape != own[name].shape]
    if missing or shapes:
        raise BackboneError(
            f"{path}: not the weights of its config.json: missing {missing[:3]}, other shape "
            f"{shapes[:3]}",
            code="backbone_mismatch",
        )
    net.load_state_dict({name: named[name] for name in own}, strict=True)
