"""From a federation file to a loaded backbone.

Promises:

1. The digest is checked before anything is loaded; a backbone that is not the pinned one is
   refused with both digests.
2. Weights come from safetensors (one packaged checkpoint format is converted, see
   ``efficientnet``); no foreign code runs and nothing is downloaded.
3. What is returned is in evaluation mode with all parameters frozen, and is new each time.
"""

from dataclasses import dataclass
from pathlib import Path

from wardround_common.backbones.base import LoadedBackbone
from wardround_common.backbones.image import ImageWeights, load_image
from wardround_common.backbones.packages import PACKAGES
from wardround_common.backbones.refs import parse_ref
from wardround_common.backbones.sources import TextWeights, weights_of
from wardround_common.backbones.table import load_table
from wardround_common.backbones.text import WEIGHTS, load_text
from wardround_common.errors import ConfigError
from wardround_common.modalities.base import Moments
from wardround_common.spec.data import ImageData, TabularData, TextData, TokenData
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import Digest


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """What is known of a backbone on this machine.

    Attributes:
        ref: as written.
        sha256: digest of the original weights file: what ``[backbone] sha256`` pins.
        parameters: number of parameters, without classifier and pooler.
        feature_dim: width of the features.
        blocks: prefixes of parameter names, input to output.
        licence: SPDX identifier of the weights, where known.
        path: the file or folder that is read.
    """

    ref: str
    sha256: Digest
    parameters: int
    feature_dim: int
    blocks: tuple[str, ...]
    licence: str | None
    path: Path


def load_backbone(federation: FederationSpec, *, moments: Moments | None = None) -> LoadedBackbone:
    """The backbone of a federation, with the encoder of its data.

    Args:
        federation: the parsed file.
        moments: of tables only, the scale of the numeric columns; None leaves them as they are.

    Raises:
        BackboneError: the weights are missing, damaged, not the pinned ones (``backbone_digest``)
            or not of their architecture.
        ConfigError: the reference is malformed, or does not fit ``[data]``.
    """
    data = federation.data
    if isinstance(data, TabularData):
        return load_table(data, moments)
    weights = weights_of(federation.backbone.ref, federation.backbone.sha256)
    if isinstance(weights, ImageWeights) and isinstance(data, ImageData):
        return load_image(weights, data.size)
    if isinstance(weights, TextWeights) and isinstance(data, TextData | TokenData):
        tagged = isinstance(data, TokenData)
        return load_text(weights.folder, weights.digest, data.max_tokens, tagged=tagged)
    kind = "images" if isinstance(weights, ImageWeights) else "text"
    raise ConfigError(
        f"backbone.ref = {federation.backbone.ref!r} is a backbone for {kind}; "
        f"data.modality is {data.modality!r}",
        code="backbone_modality",
    )


def describe(ref: str, sha256: str | None = None) -> BackboneInfo:
    """Load a backbone and say what it is.

    Args:
        ref: any reference but ``none``.
        sha256: which weights, where several are imported for one architecture.

    Raises:
        BackboneError: as :func:`load_backbone`.
        ConfigError: the reference is malformed or is ``none``.
    """
    parsed = parse_ref(ref)
    if parsed.scheme == "none":
        raise ConfigError('backbone.ref = "none" has no weights to show', code="backbone_ref")
    weights = weights_of(ref, sha256)
    if isinstance(weights, ImageWeights):
        loaded, path = load_image(weights, None), weights.path
    else:
        loaded = load_text(weights.folder, weights.digest, None, tagged=False)
        path = weights.folder / WEIGHTS
    return BackboneInfo(
        ref=ref,
        sha256=weights.digest,
        parameters=sum(parameter.numel() for parameter in loaded.module.parameters()),
        feature_dim=loaded.feature_dim,
        blocks=loaded.blocks,
        licence=PACKAGES[parsed.name].licence if parsed.scheme == "package" else None,
        path=path,
    )
