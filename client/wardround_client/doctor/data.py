"""The site's data, beyond what its schema asks: what would train and still mislead."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from wardround_client.data.load import load_site
from wardround_client.data.manifest import image_paths
from wardround_client.data.readers import read
from wardround_client.data.split import SiteExamples
from wardround_client.doctor.examined import Examined
from wardround_client.doctor.findings import Checkup
from wardround_common.modalities.base import Examples, ImageInputs, TableInputs, TextInputs
from wardround_common.spec.data import ImageData, TabularData
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.site import SiteSpec

INTENSITY: Final = "intensity"
WORDS: Final = "words"
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = 1
_FEW_OF_A_CLASS: Final = 5
_MANY_COPIES: Final = 0.5
"""Of the held-out rows: with more of them known from training, scores say little."""


def check_data(examined: Examined, spec: FederationSpec, found: Checkup) -> SiteExamples | None:
    """The data as the worker would read it.

    Args:
        examined: the site.
        spec: the federation.
        found: takes in what is found.

    Returns:
        The examples; None if they cannot be used.
    """
    site, base, policy = examined.site, examined.base, examined.policy
    examples = None
    with found.noting():
        examples = load_site(spec, site, base)
    if examples is None:
        return None
    for each in examples.findings:
        many = each.count > _MANY_COPIES * len(examples.test)
        misleads = each.code == "one_class" or (each.code == "duplicate_rows" and many)
        tell = found.fault if misleads else found.warn
        tell(each.code, f"{site.data.path}: {each}")
    fewest = 0 if policy is None else policy.limits.min_subjects
    if examples.train.num_subjects < fewest:
        found.fault(
            "policy_subjects",
            f"{site.data.path}: {examples.train.num_subjects} training subjects, and limits.min_subjects in "
            f"the policy is {fewest}: every question would be refused",
        )
    _check_classes(spec, examples, found)
    _check_reference(spec, examples.train, found)
    if isinstance(spec.data, TabularData):
        _check_columns(spec.data, examples.train, found)
    if isinstance(spec.data, ImageData):
        _check_pixels(examples.train, found)
        _check_files(site, base, spec.data, found)
    return examples


def _check_classes(spec: FederationSpec, examples: SiteExamples, found: Checkup) -> None:
    if spec.task.kind != "classification":
        return
    labels = np.array([int(target[0]) for target in examples.train.targets])
    for place, name in enumerate(spec.task.labels):
        few = int((labels == place).sum())
        if 0 < few < _FEW_OF_A_CLASS or (few == 0 and len(set(labels.tolist())) > 1):
            found.warn(
                "few_of_a_class",
                f"class {name!r} has {few} training rows here; look at label_map and at the labels",
            )


def _check_reference(spec: FederationSpec, train: Examples, found: Checkup) -> None:
    """Means against the ranges that the federation file gives."""
    means = _means(spec, train)
    for name, (low, high) in spec.data.reference.items():
        mean = means.get(name)
        if mean is not None and not low <= mean <= high:
            found.fault(
                "outside_reference",
                f"{name}: the mean here is {mean:.4g}, and data.reference of the federation expects {low:g} "
                f"to {high:g}: another unit, scale or coding? Look at the column and at data.rename",
            )


def _means(spec: FederationSpec, train: Examples) -> dict[str, float]:
    inputs = train.inputs
    if isinstance(inputs, TableInputs) and isinstance(spec.data, TabularData):
        columns = zip(spec.data.numeric, inputs.numeric.T, strict=True)
        return {name: float(np.nanmean(c)) for name, c in columns if not np.isnan(c).all()}
    if isinstance(inputs, ImageInputs):
        return {INTENSITY: float(inputs.pixels.mean()) / 255.0}
    if isinstance(inputs, TextInputs):
        return {WORDS: float(np.mean([len(text.split()) for text in inputs.texts]))}
    return {}


def _check_columns(data: TabularData, train: Examples, found: Checkup) -> None:
    assert isinstance(train.inputs, TableInputs)
    for name, column in zip(data.numeric, train.inputs.numeric.T, strict=True):
        present = column[~np.isnan(column)]
        if not len(present):
            found.fault("empty_column", f"column {name!r} has no value at all; look at data.rename")
        elif len(present) > 1 and np.ptp(present) == 0.0:
            found.warn("constant_column", f"column {name!r} has the same value in every row")


def _check_pixels(train: Examples, found: Checkup) -> None:
    assert isinstance(train.inputs, ImageInputs)
    flat = train.inputs.pixels.reshape(len(train), -1)
    constant = int((flat.max(axis=1) == flat.min(axis=1)).sum())
    if constant:
        found.fault(
            "constant_image",
            f"{constant} training images have one grey value only; look at how they were exported",
        )


def _check_files(site: SiteSpec, base: Path, data: ImageData, found: Checkup) -> None:
    """Image files that say how they are to be turned: models see them as they are stored."""
    raw = read(site.data, base, frozenset({data.file}), data.size)
    if raw.images is not None:
        return
    rows = np.arange(raw.num_rows, dtype=np.int64)
    turned = sum(_is_turned(path) for path in _there(image_paths(raw, rows, data.file)))
    if turned:
        found.fault(
            "image_orientation",
            f"{turned} image files say that they are to be turned or mirrored (EXIF orientation), and would "
            "be trained on as they are stored; turn them and save them again",
        )


def _there(paths: Iterable[Path | None]) -> Iterable[Path]:
    return (path for path in paths if path is not None and path.is_file())


def _is_turned(path: Path) -> bool:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return int(image.getexif().get(_ORIENTATION, _UPRIGHT)) != _UPRIGHT
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
