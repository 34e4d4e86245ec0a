"""Bytes that must never change: another version of this product has to read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround_common.canonical import canonical_bytes, parse_canonical
from wardround_common.errors import WireError
from wardround_common.types import TensorSpec, sha256_hex
from wardround_common.wire.layout import Layout, as_bytes, from_buffer, pack, unpack
from wardround_common.wire.step import Receipt, StepManifest, layout_to_wire, parse

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "wire.json").read_text()
)


def _layout() -> Layout:
    return Layout(tuple(TensorSpec(n, d, tuple(s)) for n, d, s in VECTORS["layout"]))


def test_the_packed_bytes_are_little_endian_row_major_without_padding() -> None:
    values = np.array(VECTORS["values"], dtype=np.float32)
    packed = from_buffer(_layout(), bytes.fromhex(VECTORS["packed"]))
    np.testing.assert_array_equal(packed, values)
    assert np.signbit(packed[1]), "minus zero stays"
    assert bytes(as_bytes(pack(_layout(), unpack(_layout(), packed)))).hex() == VECTORS["packed"]
    assert sha256_hex(as_bytes(packed)) == VECTORS["packed_sha256"]
    assert unpack(_layout(), packed)["head.0.weight"][1, 0].item() == values[3]


@pytest.mark.parametrize(("name", "model"), [("manifest", StepManifest), ("receipt", Receipt)])
def test_the_canonical_bytes_of_a_message_are_the_recorded_ones(name: str, model: Any) -> None:
    data = VECTORS[name].encode()
    message = parse(model, data, max_bytes=10_000)
    assert message.to_bytes() == data
    assert message.digest() == VECTORS[f"{name}_sha256"] == sha256_hex(data)


def test_a_manifest_names_the_layout_of_its_arrays() -> None:
    manifest = parse(StepManifest, VECTORS["manifest"].encode(), max_bytes=10_000)
    assert manifest.state_layout == manifest.reply_layout == _layout()
    assert manifest.state == layout_to_wire(_layout())


def test_canonical_json_is_the_recorded_one() -> None:
    for value, text in VECTORS["canonical"]:
        assert canonical_bytes(value).decode() == text
        assert parse_canonical(text.encode(), max_bytes=1000) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", "0123"),
        ("step", -1),
        ("step", 1.0),
        ("kind", "exec"),
        ("sites", ["Cleveland"]),
        ("spec_sha256", "ab"),
        ("update_norm", 0.0),
        ("subjects", 0),
        ("bound", -1.0),
        ("state", [["w", "int64", [1]]]),
        ("state", [["w", "float32"]]),
        ("extra", 1),
    ],
)
def test_a_manifest_of_another_form_is_refused(field: str, value: object) -> None:
    raw = json.loads(VECTORS["manifest"])
    assert parse(StepManifest, canonical_bytes(raw), max_bytes=10_000)
    with pytest.raises(WireError) as caught:
        parse(StepManifest, canonical_bytes({**raw, field: value}), max_bytes=10_000)
    assert caught.value.code == "message_form"
