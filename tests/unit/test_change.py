"""The difference to a state is taken block by block, and the state written back."""

import numpy as np
import pytest
import torch

from wardround_common.change import _BLOCK, Change
from wardround_common.wire.layout import layout_of, pack


@pytest.mark.parametrize("size", [1, _BLOCK, _BLOCK + 1, 3 * _BLOCK - 7])
def test_tensors_of_any_size_are_subtracted_and_put_back(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    before = {
        "matrix": torch.randn(7, 5, generator=generator),
        "sized": torch.randn(size, generator=generator),
        "square": torch.randn(2, 300, 300, generator=generator),
    }
    now = {name: value + torch.randn(value.shape) for name, value in before.items()}
    layout = layout_of(before)
    wanted = pack(layout, {name: now[name] - before[name] for name in now})
    change = Change(layout, now)
    assert change.take(before).tobytes() == wanted.tobytes()
    assert all(torch.equal(now[name], before[name]) for name in now)
    assert not change.take(before).any(), "nothing has changed since"


def test_differences_are_written_where_they_are_wanted() -> None:
    now, before = {"x": torch.ones(5)}, {"x": torch.zeros(5)}
    change, elsewhere = Change(layout_of(now), now), np.zeros(5, dtype=np.float32)
    assert change.take(before, elsewhere) is elsewhere
    assert elsewhere.tolist() == [1.0] * 5
    own = change.take(before)
    assert own is not elsewhere
    assert own is change.take(before)
