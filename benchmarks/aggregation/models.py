"""Shapes of the two models, and updates with given values."""

from collections.abc import Iterator

import numpy as np

from wardround_common.types import TensorSpec
from wardround_common.wire.layout import Layout

MODELS = ("resnet18", "bert")
DISTINCT = {"resnet18": 20, "bert": 4}
"""Distinct source buffers: one a site for 45 MB; four in turn for 440 MB, to fit the memory."""


def layout(model: str) -> Layout:
    """ResNet-18 (11.7 million parameters, 45 MB) or BERT-base (109 million, 438 MB), float32."""
    shapes = list(_resnet18() if model == "resnet18" else _bert())
    return Layout(tuple(TensorSpec(f"t{i}", "float32", shape) for i, shape in enumerate(shapes)))


def values(model: str, place: int) -> np.ndarray:
    """The update of a site, float32 [n]; equal for equal buffers."""
    seed = place % DISTINCT[model]
    rng = np.random.Generator(np.random.PCG64(seed))
    update: np.ndarray = rng.standard_normal(layout(model).num_values, dtype=np.float32)
    update *= 1e-3
    return update


def weight(place: int) -> int:
    """Training subjects of a site."""
    return 100 + 7 * place


def _resnet18() -> Iterator[tuple[int, ...]]:
    yield from ((64, 3, 7, 7), (64,), (64,))
    before = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            yield from ((width, before, 3, 3), (width,), (width,))
            yield from ((width, width, 3, 3), (width,), (width,))
            if block == 0 and before != width:
                yield from ((width, before, 1, 1), (width,), (width,))
            before = width
    yield from ((1000, 512), (1000,))


def _bert() -> Iterator[tuple[int, ...]]:
    wide, inner = 768, 3072
    yield from ((30522, wide), (512, wide), (2, wide), (wide,), (wide,))
    for _ in range(12):
        for _ in range(4):
            yield from ((wide, wide), (wide,))
        yield from ((wide,), (wide,), (inner, wide), (inner,), (wide, inner), (wide,))
        yield from ((wide,), (wide,))
    yield from ((wide, wide), (wide,))
