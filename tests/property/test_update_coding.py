"""Codings of updates: how far off they are, how long they are, and what they refuse."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_client.worker.error_feedback import ErrorFeedback, Remainders
from wardround_common.errors import IntegrityError, WireError
from wardround_common.spec.exchange import Exchange
from wardround_common.types import TensorSpec
from wardround_common.wire.codecs.base import Codec
from wardround_common.wire.codecs.registry import codec_for
from wardround_common.wire.layout import Layout

CODINGS: list[dict[str, Any]] = [
    {"coding": "bf16"},
    {"coding": "int8"},
    {"coding": "int8", "block": 16},
    {"coding": "top-k", "fraction": 0.3},
    {"coding": "powersgd", "rank": 2},
]
LAYOUT = Layout(
    (
        TensorSpec("conv", "float32", (6, 5, 3, 3)),
        TensorSpec("bias", "float32", (6,)),
        TensorSpec("scale", "float32", ()),
        TensorSpec("wide", "float32", (1, 40)),
        TensorSpec("none", "float32", (0, 7)),
        TensorSpec("linear", "float32", (17, 23)),
    )
)


def _codec(coding: dict[str, Any], layout: Layout = LAYOUT) -> Codec:
    codec = codec_for(Exchange.model_validate({"update": coding}).update, layout)
    assert codec is not None
    return codec


def _vector(size: int) -> Layout:
    return Layout((TensorSpec("x", "float32", (size,)),))


def _values(seed: int, size: int = LAYOUT.num_values, scale: float = 1.0) -> Any:
    return (np.random.default_rng(seed).normal(size=size) * scale).astype(np.float32)


def _decoded(codec: Codec, values: Any) -> Any:
    out = np.full(values.size, np.nan, dtype=np.float32)
    codec.decode(codec.encode(values), out)
    return out


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]))
@settings(max_examples=20, deadline=None)
def test_the_number_of_bytes_is_the_promised_one_and_equal_values_have_equal_bytes(
    coding: dict[str, Any], seed: int, scale: float
) -> None:
    codec, values = _codec(coding), _values(seed, scale=scale)
    coded = codec.encode(values)
    assert coded.dtype == np.uint8
    assert coded.shape == (codec.num_bytes,)
    assert (coded == _codec(coding).encode(values.copy())).all()
    assert np.isfinite(_decoded(codec, values)).all()


@given(size=st.integers(1, 2000), seed=st.integers(0, 2**32), block=st.sampled_from([16, 100, 256]))
@settings(max_examples=50, deadline=None)
def test_int8_is_off_by_at_most_half_the_scale_of_the_block(
    size: int, seed: int, block: int
) -> None:
    values = _values(seed, size) * np.exp(_values(seed + 1, size))
    codec = _codec({"coding": "int8", "block": block}, _vector(size))
    apart = np.abs(_decoded(codec, values) - values)
    for start in range(0, size, block):
        part = slice(start, start + block)
        assert apart[part].max() <= np.abs(values[part]).max() / 127 * 0.50001
    assert codec.num_bytes == size + 4 * -(-size // block)


def test_int8_keeps_zeros_extremes_and_values_too_small_for_a_scale() -> None:
    codec = _codec({"coding": "int8"}, _vector(600))
    values = np.zeros(600, dtype=np.float32)
    assert (_decoded(codec, values) == 0).all()
    values[:2], values[300] = (127.0, -127.0), 1e-45
    decoded = _decoded(codec, values)
    assert decoded[:2].tolist() == [127.0, -127.0]
    assert (decoded[2:] == 0).all()


@given(size=st.integers(1, 300), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_bf16_is_off_by_at_most_one_part_in_256(size: int, seed: int) -> None:
    values = _values(seed, size)
    decoded = _decoded(_codec({"coding": "bf16"}, _vector(size)), values)
    assert (np.abs(decoded - values) <= np.abs(values) * 2.0**-8).all()


@given(size=st.integers(1, 300), seed=st.integers(0, 2**32), fraction=st.floats(0.01, 0.99))
@settings(max_examples=30, deadline=None)
def test_top_k_keeps_the_largest_values_exactly(size: int, seed: int, fraction: float) -> None:
    values = _values(seed, size)
    codec = _codec({"coding": "top-k", "fraction": fraction}, _vector(size))
    decoded = _decoded(codec, values)
    kept = decoded != 0
    assert (decoded[kept] == values[kept]).all()
    assert kept.sum() == int(np.ceil(fraction * size))
    if not kept.all():
        assert np.abs(values[kept]).min() >= np.abs(values[~kept]).max()


def test_powersgd_is_exact_for_matrices_of_its_rank_and_small_tensors() -> None:
    codec, values = _codec({"coding": "powersgd", "rank": 2}), _values(3)
    rng = np.random.default_rng(4)
    for spec, where in LAYOUT.slices():
        if len(spec.shape) > 1 and spec.num_values:
            rows = spec.shape[0]
            columns = spec.num_values // rows
            low = rng.normal(size=(rows, 2)) @ rng.normal(size=(2, columns))
            values[where] = low.ravel()
    np.testing.assert_allclose(_decoded(codec, values), values, atol=2e-5)
    assert codec.num_bytes < values.nbytes / 2


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@pytest.mark.parametrize("change", [-1, 1, None])
def test_another_number_of_bytes_is_refused(coding: dict[str, Any], change: int | None) -> None:
    codec, out = _codec(coding), np.empty(LAYOUT.num_values, dtype=np.float32)
    size = 0 if change is None else codec.num_bytes + change
    with pytest.raises(WireError) as caught:
        codec.decode(np.zeros(size, dtype=np.uint8), out)
    assert caught.value.code == "update_bytes"


@pytest.mark.parametrize("places", [[0, 0, 1], [2, 1, 3], [0, 1, 10], [0, 1, 2**32 - 1]])
def test_top_k_refuses_places_that_no_encoder_writes(places: list[int]) -> None:
    codec = _codec({"coding": "top-k", "fraction": 0.3}, _vector(10))
    out = np.empty(10, dtype=np.float32)
    coded = codec.encode(_values(0, 10))
    codec.decode(coded, out)
    coded[:12].view("<u4")[:] = places
    with pytest.raises(WireError) as caught:
        codec.decode(coded, out)
    assert caught.value.code == "coded_places"


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_bytes_are_decoded_within_the_array_or_refused(
    coding: dict[str, Any], data: st.DataObject
) -> None:
    codec = _codec(coding)
    seed = data.draw(st.integers(0, 2**32))
    coded = np.random.default_rng(seed).integers(0, 256, codec.num_bytes, dtype=np.uint8)
    around = np.full(LAYOUT.num_values + 2, 7.0, dtype=np.float32)
    with contextlib.suppress(WireError):
        codec.decode(coded, around[1:-1])
    assert around[0] == around[-1] == 7.0


# -- error feedback ------------------------------------------------------------------------------


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("coding", CODINGS[1:], ids=str)
def test_what_is_sent_adds_up_to_the_updates_but_for_the_last_remainder(
    tmp_path: Path, coding: dict[str, Any], feedback: bool
) -> None:
    """The twin without feedback is further off than the last remainder."""
    codec, site = _codec(coding), ErrorFeedback(tmp_path / "a")
    true, sent = np.zeros(LAYOUT.num_values), np.zeros(LAYOUT.num_values)
    lost = np.zeros(LAYOUT.num_values, dtype=np.float32)
    for round_ in range(1, 30):
        update = _values(0) + 0.1 * _values(round_)
        true += update
        if feedback:
            remainder = site.before(round_, update.size)
            update = update if remainder is None else update + remainder
        decoded = _decoded(codec, update)
        sent += decoded
        lost = update - decoded
        site.keep(round_, lost)
    apart = np.abs(true - sent).max()
    assert bool(apart <= 1.01 * np.abs(lost).max() + 1e-5) is feedback


def test_a_round_starts_from_the_newest_remainder_before_it(tmp_path: Path) -> None:
    site = ErrorFeedback(tmp_path / "a")
    assert site.before(1, 3) is None
    for round_ in (1, 2, 4):
        site.keep(round_, np.full(3, round_, dtype=np.float32))
    assert [float(site.before(r, 3)[0]) for r in (2, 3, 4, 5, 9)] == [1, 2, 2, 4, 4]  # type: ignore[index]
    assert site.before(1, 3) is None
    with pytest.raises(IntegrityError, match=r"4\.f32 is damaged"):
        site.before(5, 4)


def test_remainders_are_deleted_once_the_journal_is_durable_without_them(tmp_path: Path) -> None:
    remainders = Remainders(tmp_path)
    values = np.zeros(3, dtype=np.float32)

    def rounds(site: str) -> list[int]:
        return sorted(int(path.stem) for path in (tmp_path / site).glob("*.f32"))

    remainders.make_durable()
    for round_ in range(1, 6):
        remainders.of("a").keep(round_, values)
    remainders.of("b").keep(1, values)
    remainders.make_durable()
    assert rounds("a") == [1, 2, 3, 4, 5], "the run may still be thrown back to any of them"
    remainders.of("a").keep(6, values)
    remainders.make_durable()
    assert (rounds("a"), rounds("b")) == ([4, 5, 6], [1])


# -- bytes that must never change ----------------------------------------------------------------

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "codings.json").read_text())


@pytest.mark.parametrize("name", sorted(VECTORS["codings"]))
def test_the_bytes_of_a_coding_are_the_recorded_ones(name: str) -> None:
    values = np.array(VECTORS["values"], dtype=np.float32)
    vector = VECTORS["codings"][name]
    codec = _codec(vector["update"], _vector(values.size))
    coded = codec.encode(values)
    assert coded.tobytes().hex() == vector["coded"]
    assert _decoded(codec, values).tolist() == vector["decoded"]
