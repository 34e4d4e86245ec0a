"""Features of a frozen backbone: computed once, kept on the site's disk.

The cache's key binds everything the features depend on: the backbone's digest, the transform, the
data's digest, the part of the split, the view of the images, and the format. A cache file holds
data derived from patients and belongs on the same protected disk as the data. A file that does not
read back as expected is computed again; one that does spares the images' decoding too.
"""

from pathlib import Path

import torch
from safetensors.torch import save

from wardround_client.training.batches import FeatureSet, Source, TrainingSet, in_order
from wardround_client.training.rows import read_rows
from wardround_client.training.stopping import raise_if_stopped
from wardround_common.canonical import canonical_bytes
from wardround_common.durable import write_file
from wardround_common.modalities.base import IGNORED
from wardround_common.shared_model import SharedModel
from wardround_common.types import sha256_hex

_FORMAT = 1
_BATCH = 32
_NAME = "features"


@torch.no_grad()
def extract(shared: SharedModel, data: TrainingSet, device: torch.device) -> torch.Tensor:
    """Features of all labelled positions through the backbone as it stands, in evaluation mode.

    Returns:
        float32 [m, d]: one row an example, or one a labelled word, example after example.
    """
    shared.model.eval()
    parts: list[torch.Tensor] = [torch.empty(0)] * len(data)
    for rows in in_order(data, _BATCH):
        raise_if_stopped()
        inputs, targets = data.batch(rows, device)
        features = shared.model.backbone(**inputs).float().cpu()
        for row, values, labels in zip(rows.tolist(), features, targets.cpu(), strict=True):
            parts[row] = values[labels != IGNORED] if targets.dim() == 2 else values[None]
    return torch.cat(parts)


def cache_file(
    shared: SharedModel,
    folder: Path,
    *,
    data_sha256: str,
    part: str,
    rows: int,
    view: str = "",
    block: str = "",
) -> Path:
    """The file that holds what the frozen part of a backbone gives for some data.

    Args:
        shared: the model: its backbone and encoder enter the key.
        folder: the cache.
        data_sha256: digest of the site's data.
        part: which part of the split, such as ``train``.
        rows: number of examples.
        view: canonical description of the view of the images; empty for the plain ones.
        block: the first block that is not frozen; empty for features.
    """
    key = sha256_hex(
        canonical_bytes(
            {
                "format": _FORMAT,
                "numbers": "float32",
                "backbone": shared.backbone_digest,
                "transform": shared.encoder.transform,
                "data": data_sha256,
                "part": part,
                "rows": rows,
                "view": view,
                "block": block,
            }
        )
    )
    return folder / f"{key}.safetensors"


def cached_features(
    shared: SharedModel,
    data: Source,
    device: torch.device,
    *,
    folder: Path,
    data_sha256: str,
    part: str,
    view: str = "",
) -> FeatureSet:
    """Features from the cache, or computed and cached.

    Args:
        shared: the model with its initial backbone.
        data: the examples of one part; encoded only if features have to be computed.
        device: where the model is.
        folder: the cache; made if absent.
        data_sha256: digest of the site's data.
        part: which part of the split, such as ``train``.
        view: canonical description of the view of the images; empty for the plain ones.

    Returns:
        The features with the data's targets and subjects.
    """
    targets = data.targets
    labelled = targets != IGNORED
    lengths = labelled.sum(dim=1) if targets.dim() == 2 else None
    shape = (int(labelled.sum()), shared.feature_dim)
    path = cache_file(shared, folder, data_sha256=data_sha256, part=part, rows=len(data), view=view)
    features = read_rows(path, _NAME, shape)
    if features is None:
        features = extract(shared, data.made(), device)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, save({_NAME: features}))
    return FeatureSet(features, targets[labelled], data.subjects, lengths, data.missed)
