"""Features of a frozen backbone: computed once, kept on the site's disk.

The cache's key binds everything the features depend on: the backbone's digest, the transform, the
data's digest, the part of the split, and the format. A cache file holds data derived from patients
and belongs on the same protected disk as the data. A file that does not read back as expected is
computed again.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from wardround_client.training.batches import EncodedSet, FeatureSet, in_order
from wardround_common.canonical import canonical_bytes
from wardround_common.durable import write_file
from wardround_common.modalities.base import IGNORED
from wardround_common.shared_model import SharedModel
from wardround_common.types import sha256_hex

_FORMAT = 1
_BATCH = 32


@torch.no_grad()
def extract(shared: SharedModel, data: EncodedSet, device: torch.device) -> torch.Tensor:
    """Features of all labelled positions through the backbone as it stands, in evaluation mode.

    Returns:
        float32 [m, d]: one row an example, or one a labelled word, example after example.
    """
    shared.model.eval()
    parts: list[torch.Tensor] = [torch.empty(0)] * len(data)
    for rows in in_order(data, _BATCH):
        inputs, targets = data.batch(rows, device)
        features = shared.model.backbone(**inputs).float().cpu()
        for row, values, labels in zip(rows.tolist(), features, targets.cpu(), strict=True):
            parts[row] = values[labels != IGNORED] if targets.dim() == 2 else values[None]
    return torch.cat(parts)


def cached_features(
    shared: SharedModel,
    data: EncodedSet,
    device: torch.device,
    *,
    folder: Path,
    data_sha256: str,
    part: str,
) -> FeatureSet:
    """Features from the cache, or computed and cached.

    Args:
        shared: the model with its initial backbone.
        data: the encoded examples of one part.
        device: where the model is.
        folder: the cache; made if absent.
        data_sha256: digest of the site's data.
        part: which part of the split, such as ``train``.

    Returns:
        The features with the data's targets and subjects.
    """
    targets = data.encoded.targets
    labelled = targets != IGNORED
    lengths = labelled.sum(dim=1) if targets.dim() == 2 else None
    shape = (int(labelled.sum()), shared.feature_dim)
    key = sha256_hex(
        canonical_bytes(
            {
                "format": _FORMAT,
                "backbone": shared.backbone_digest,
                "transform": shared.encoder.transform,
                "data": data_sha256,
                "part": part,
                "rows": len(data),
            }
        )
    )
    path = folder / f"{key}.safetensors"
    features = _read(path, shape)
    if features is None:
        features = extract(shared, data, device)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, save({"features": features}))
    return FeatureSet(features, targets[labelled], data.subjects, lengths, data.missed)


def _read(path: Path, shape: tuple[int, int]) -> torch.Tensor | None:
    try:
        features = load_file(path).get("features")
    except (OSError, SafetensorError):
        return None
    if features is None or tuple(features.shape) != shape or features.dtype != torch.float32:
        return None
    return features
