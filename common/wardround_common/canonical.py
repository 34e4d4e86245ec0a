"""Canonical bytes of JSON values, so that equal meaning has equal digests.

Keys are sorted, no white space, ASCII only, NaN and infinities refused. Floats are written as
Python's shortest round-trip form (a subset of RFC 8785 that this product's values stay within).
"""

import json
from typing import TypeAlias

from wardround_common.errors import WireError

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None


def canonical_bytes(value: object) -> bytes:
    """The canonical encoding of a JSON value.

    Args:
        value: built of dict (string keys), list, tuple, str, int, float, bool and None.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: the value is not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def parse_canonical(data: bytes, *, max_bytes: int) -> JsonValue:
    """Decode ``data`` and insist that it was canonical.

    Args:
        data: bytes from elsewhere.
        max_bytes: refused above this size, before parsing.

    Raises:
        WireError: too long, not JSON, or not the canonical form (duplicate keys, other spacing,
            NaN), so that no two different byte strings are accepted for one meaning.
    """
    if len(data) > max_bytes:
        raise WireError(f"{len(data)} bytes, at most {max_bytes} allowed", code="json_too_large")
    try:
        value: JsonValue = json.loads(data)
        same = canonical_bytes(value) == data
    except (ValueError, RecursionError, TypeError) as error:
        raise WireError("not canonical JSON", code="json_malformed") from error
    if not same:
        raise WireError("JSON is not in canonical form", code="json_not_canonical")
    return value
