"""Views of images: the same wherever they are made, and only of training images."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.support import federation
from wardround_client.training.augmentation import AugmentedSet, Views
from wardround_client.training.batches import EncodedSet
from wardround_common.modalities.base import Encoded
from wardround_common.spec.federation import Augmentation, FederationSpec

EVERYTHING = Augmentation(
    views=3,
    horizontal_flip=True,
    vertical_flip=True,
    rotation_degrees=15.0,
    scale=(0.6, 0.9),
    brightness=0.3,
    contrast=0.3,
)
CPU = torch.device("cpu")


def image(seed: int = 0, size: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)


def encoded(*images: torch.Tensor) -> EncodedSet:
    count = len(images)
    return EncodedSet(
        Encoded({"pixels": torch.stack(images)}, torch.zeros(count).long(), torch.arange(count))
    )


def test_view_0_is_the_image_and_the_others_differ() -> None:
    views = [Views(EVERYTHING, 1).pixels(image(), number) for number in range(3)]
    assert torch.equal(views[0], image())
    assert len({view.numpy().tobytes() for view in views}) == 3
    assert all(view.shape == (3, 24, 24) and view.dtype == torch.uint8 for view in views)


def test_a_view_follows_from_seed_image_and_number_whatever_the_global_generators() -> None:
    torch.manual_seed(1)
    first = Views(EVERYTHING, 7).pixels(image(), 2)
    torch.manual_seed(2)
    assert torch.equal(Views(EVERYTHING, 7).pixels(image(), 2), first)
    assert not torch.equal(Views(EVERYTHING, 8).pixels(image(), 2), first)
    assert not torch.equal(Views(EVERYTHING, 7).pixels(image(), 1), first)


def test_a_view_does_not_depend_on_the_images_place_or_its_neighbours() -> None:
    views = Views(EVERYTHING, 7)
    alone = AugmentedSet(encoded(image(5)), views, 1).batch(torch.tensor([0]), CPU)[0]
    among = AugmentedSet(encoded(image(3), image(4), image(5)), views, 1)
    together = among.batch(torch.tensor([1, 2, 0]), CPU)[0]
    assert torch.equal(together["pixels"][1], alone["pixels"][0])


@pytest.mark.parametrize(
    "change",
    [
        {"horizontal_flip": True},
        {"vertical_flip": True},
        {"rotation_degrees": 30.0},
        {"scale": (0.5, 0.6)},
        {"brightness": 0.5},
        {"contrast": 0.5},
    ],
)
def test_each_transform_changes_pixels_and_no_other_does(change: dict[str, Any]) -> None:
    views = Views(Augmentation(views=9, **change), 0)
    seen = [views.pixels(image(), number) for number in range(1, 9)]
    assert any(not torch.equal(view, image()) for view in seen)
    if "horizontal_flip" in change:
        assert all(torch.equal(v, image()) or torch.equal(v, image().flip(2)) for v in seen)
    if "vertical_flip" in change:
        assert all(torch.equal(v, image()) or torch.equal(v, image().flip(1)) for v in seen)


def test_the_description_of_a_view_binds_seed_number_and_transforms_but_not_their_count() -> None:
    views = Views(EVERYTHING, 1)
    more = Views(EVERYTHING.model_copy(update={"views": 9}), 1)
    assert more.describe(1) == views.describe(1)
    others = (
        views.describe(2),
        Views(EVERYTHING, 2).describe(1),
        Views(EVERYTHING.model_copy(update={"contrast": 0.1}), 1).describe(1),
    )
    assert views.describe(1) not in others


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"views": 3}, "every view would be the plain image"),
        ({"scale": [0.9, 0.5]}, "smallest share first"),
        ({"views": 1, "horizontal_flip": True}, "greater than or equal to 2"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Augmentation.model_validate_json(json.dumps(table))


def test_other_modalities_than_images_are_refused() -> None:
    with pytest.raises(ValidationError, match=r'views of images; data\.modality is "tabular"'):
        federation(training={"augmentation": {"views": 2, "horizontal_flip": True}})
    assert isinstance(federation(), FederationSpec)


def ultrasound() -> torch.Tensor:
    path = Path(os.environ.get("WARDROUND_DATA", "")) / "busi" / "busi_normal_128.npz"
    if not path.is_file():
        pytest.skip("needs the ultrasound files that `wardround data list` names")
    grey = np.load(path, allow_pickle=False)["images"][:4]
    return torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1)


def test_views_of_ultrasound_stay_grey_and_near_the_image() -> None:
    mild = Augmentation(
        views=3, horizontal_flip=True, rotation_degrees=5.0, scale=(0.9, 1.0), brightness=0.1
    )
    for plain in ultrasound():
        for number in (1, 2):
            view = Views(mild, 0).pixels(plain, number)
            assert torch.equal(view[0], view[1])
            assert torch.equal(view[1], view[2])
            assert not torch.equal(view, plain)
            assert abs(view.float().mean() - plain.float().mean()) < 0.2 * plain.float().mean()
