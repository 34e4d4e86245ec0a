"""The packed array and canonical JSON: what goes in comes out, and nothing else is accepted."""

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wardround_common.canonical import canonical_bytes, parse_canonical
from wardround_common.errors import WireError
from wardround_common.types import TensorSpec
from wardround_common.wire.layout import (
    Layout,
    as_bytes,
    empty,
    from_buffer,
    layout_of,
    pack,
    unpack,
)
from wardround_common.wire.step import layout_from_wire, layout_to_wire

names = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=200)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
dtypes = st.sampled_from(["float32", "float64"])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    dtype = draw(dtypes)
    unique = draw(st.lists(names, max_size=6, unique=True))
    return Layout(tuple(TensorSpec(name, dtype, draw(shapes)) for name in unique))


@st.composite
def packed(draw: st.DrawFn) -> tuple[Layout, dict[str, torch.Tensor]]:
    layout = draw(layouts())
    rng = np.random.Generator(np.random.PCG64(draw(st.integers(0, 99))))
    tensors = {
        t.name: torch.from_numpy(np.asarray(rng.normal(size=t.shape)).astype(t.dtype))
        for t in layout.tensors
    }
    return layout, tensors


json_values: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(packed())
def test_what_is_packed_comes_out_of_its_bytes(
    case: tuple[Layout, dict[str, torch.Tensor]],
) -> None:
    layout, tensors = case
    array = pack(layout, tensors)
    assert array.nbytes == layout.num_bytes
    received = from_buffer(layout, bytes(as_bytes(array)))
    found = unpack(layout, received)
    assert list(found) == [t.name for t in layout.tensors]
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@settings(max_examples=60, deadline=None)
@given(packed())
def test_nothing_is_copied_but_once_into_the_packed_array(
    case: tuple[Layout, dict[str, torch.Tensor]],
) -> None:
    layout, tensors = case
    assume(layout.num_values)
    array = pack(layout, tensors)
    for name, view in unpack(layout, array).items():
        if view.numel():
            assert np.shares_memory(view.numpy(), array), name
            assert not np.shares_memory(array, tensors[name].numpy())
    data = bytearray(as_bytes(array))
    received = from_buffer(layout, data)
    assert np.shares_memory(received, np.frombuffer(data, dtype=np.uint8))
    assert np.shares_memory(np.frombuffer(as_bytes(array), dtype=np.uint8), array)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(-9, 9).filter(bool))
def test_any_other_number_of_bytes_is_refused(layout: Layout, more: int) -> None:
    size = layout.num_bytes + more
    assume(size >= 0)
    with pytest.raises(WireError) as caught:
        from_buffer(layout, bytes(size))
    assert caught.value.code == "update_bytes"


def test_a_promise_of_gigabytes_is_refused_before_anything_is_allocated() -> None:
    layout = Layout((TensorSpec("w", "float64", (2**17, 2**17)),))
    assert layout.num_bytes == 2**37
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            from_buffer(layout, b"\0" * 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_a_layout_survives_the_manifest(layout: Layout) -> None:
    assert layout_from_wire(layout_to_wire(layout)) == layout
    stops = [where.stop for _, where in layout.slices()]
    assert stops == sorted(stops)
    assert (stops[-1] if stops else 0) == layout.num_values == len(empty(layout))


T = TensorSpec


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ((T("w", "float32", (1,)), T("w", "float32", (1,))), "layout_names"),
        ((T("", "float32", (1,)),), "layout_names"),
        ((T("w\n", "float32", (1,)),), "layout_names"),
        ((T("gewicht-ä", "float32", (1,)),), "layout_names"),
        ((T("w" * 201, "float32", (1,)),), "layout_names"),
        (tuple(T(f"w{i}", "float32", ()) for i in range(20_001)), "layout_names"),
        ((T("w", "float32", (1,)), T("v", "float64", (1,))), "layout_dtype"),
        ((T("w", "float32", (-1,)),), "layout_shape"),
        ((T("w", "float32", (2**20, 2**20)),), "layout_size"),
    ],
)
def test_an_illegal_layout_is_refused(tensors: tuple[TensorSpec, ...], code: str) -> None:
    with pytest.raises(WireError) as caught:
        Layout(tensors)
    assert caught.value.code == code


def test_packing_refuses_a_missing_tensor_and_another_shape() -> None:
    layout = layout_of({"a": torch.zeros(2, 3), "b": torch.zeros(1)})
    for tensors in ({"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2), "b": torch.zeros(1)}):
        with pytest.raises(WireError):
            pack(layout, tensors)


def test_packing_takes_any_float_dtype_and_strides() -> None:
    layout = layout_of({"a": torch.zeros(2, 3)})
    wanted = torch.arange(6.0).view(3, 2).T
    for tensor in (wanted, wanted.double(), wanted.bfloat16(), wanted.clone().requires_grad_()):
        assert torch.equal(unpack(layout, pack(layout, {"a": tensor}))["a"], wanted)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_canonical_json_comes_back_equal(value: Any) -> None:
    try:
        data = canonical_bytes(value)
    except UnicodeEncodeError:
        return
    parsed = parse_canonical(data, max_bytes=len(data))
    assert parsed == value
    assert canonical_bytes(parsed) == data


@settings(max_examples=200, deadline=None)
@given(json_values, st.data())
def test_no_other_bytes_are_accepted_for_the_same_meaning(value: Any, draw: st.DataObject) -> None:
    data = canonical_bytes(value)
    others = [
        json.dumps(value, sort_keys=True).encode(),
        json.dumps(value, indent=1).encode(),
        json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        ),
        data + b"\n",
        b" " + data,
        data.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + data,
    ]
    if isinstance(value, dict) and len(value) > 1:
        others.append(json.dumps(dict(sorted(value.items(), reverse=True))).encode())
    for other in others:
        if other != data:
            with pytest.raises(WireError):
                parse_canonical(other, max_bytes=10**6)
    place = draw.draw(st.integers(0, len(data) - 1))
    flipped = bytearray(data)
    flipped[place] ^= 1 << draw.draw(st.integers(0, 7))
    try:
        changed = parse_canonical(bytes(flipped), max_bytes=10**6)
    except WireError as error:
        assert error.code in {"json_malformed", "json_not_canonical"}  # noqa: PT017
    else:
        assert canonical_bytes(changed) == bytes(flipped) != data


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_have_no_canonical_form(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_bytes({"x": number})
    for text in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
        with pytest.raises(WireError):
            parse_canonical(text, max_bytes=100)


def test_too_long_is_refused_unread() -> None:
    with pytest.raises(WireError) as caught:
        parse_canonical(b"{" * 11, max_bytes=10)
    assert caught.value.code == "json_too_large"
