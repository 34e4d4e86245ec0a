"""Breast ultrasound images (BUSI) from three npz files, one a class.

The images are put into one fixed random order, so that the first so many are of all classes. The
set records no patient: images of one woman can be in two parts of a split, which flatters the figures
measured on it.
"""

import io

import numpy as np

from wardround_client.data.prepare.files import Prepared, Sources, npz_bytes

CLASSES = ("benign", "malignant", "normal")


def prepare(sources: Sources) -> Prepared:
    """``images`` uint8 [780, 128, 128], ``label`` and ``id``."""
    images: list[np.ndarray] = []
    labels: list[str] = []
    identifiers: list[str] = []
    for name in CLASSES:
        source = np.load(io.BytesIO(sources[f"busi_{name}_128.npz"]), allow_pickle=False)
        images.append(source["images"])
        labels += [name] * len(source["images"])
        identifiers += [f"{name}-{number}" for number in source["ids"].tolist()]
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    arrays = {
        "images": np.concatenate(images)[order],
        "label": np.array(labels)[order],
        "id": np.array(identifiers)[order],
    }
    return {"images.npz": npz_bytes(arrays)}
