"""The egress guard: the last look at the bytes that would leave, whoever made them.

It trusts nothing of what computed them. What is not closed is refused, never mended:

1. The receipt, read back from its bytes, has exactly the fields of its form, answers exactly this
   question as this site, and every number in it is in its range.
2. The array has exactly the size, the digest and the coding that the question wants. Coded blocks are
   written in the one way in which coding writes them, so that there is no second spelling to hide in.
3. All values are finite, within the question's bounds, and an update is no longer than both the
   federation and the policy allow.

What it cannot close: values that training may well have produced carry what anybody puts into their
low bits, one bit or more each. Against that only noise helps, which drowns it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ValidationError

from wardround_client.policy.rules import PolicyError
from wardround_common.canonical import canonical_bytes
from wardround_common.errors import WireError
from wardround_common.spec.exchange import Int8Update, UpdateCoding
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.bodies import BODIES
from wardround_common.wire.codecs.decoders import Decoders
from wardround_common.wire.layout import Layout, Packed, as_bytes, flat_tensor
from wardround_common.wire.step import (
    MAX_RECEIPT_BYTES,
    Receipt,
    StepManifest,
    layout_to_wire,
    parse,
)

_BLOCK = 1 << 16
_LEAST_CODE = 64
"""The largest magnitude of a block of int8 is 127, less only where its scale is as small as can be."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """What would leave.

    Attributes:
        receipt: its canonical bytes.
        array: the packed array as it would be sent; None where there is none.
    """

    receipt: bytes
    array: Packed | None


def guard(
    manifest: StepManifest,
    site: SiteId,
    leaving: Leaving,
    *,
    coding: UpdateCoding,
    update_norm: float,
) -> float:
    """Refuse whatever does not have the promised form.

    Args:
        manifest: the question.
        site: whose answer it is.
        leaving: the bytes.
        coding: how the federation file has updates coded.
        update_norm: the policy's largest L2 norm.

    Returns:
        The L2 norm of the array, 0 for none.

    Raises:
        PolicyError: ``egress_...``, the first rule that is broken.
    """
    receipt = _receipt(leaving.receipt)
    layout = manifest.reply_of(site)
    checks = (
        (receipt.run == manifest.run, "egress_question"),
        (receipt.step == manifest.step, "egress_question"),
        (receipt.kind == manifest.kind, "egress_question"),
        (receipt.round == manifest.round, "egress_question"),
        (receipt.manifest_sha256 == manifest.digest(), "egress_question"),
        (receipt.site == site, "egress_site"),
        (receipt.tensors == layout_to_wire(layout), "egress_tensors"),
        (1 <= receipt.num_subjects <= manifest.subjects, "egress_subjects"),
        (receipt.num_subjects <= receipt.num_examples, "egress_subjects"),
    )
    for holds, code in checks:
        _require(holds, code)
    _check_body(receipt)
    values = _values(manifest, layout, receipt, leaving.array, coding)
    if values is None:
        return 0.0
    largest, norm = _magnitudes(values)
    _require(np.isfinite(norm) and np.isfinite(largest), "egress_finite")
    _require(largest <= manifest.bound, "egress_bound")
    if manifest.kind == "train":
        _require(norm <= min(manifest.update_norm, update_norm), "egress_norm")
    return norm


def _require(holds: bool, code: str) -> None:
    if not holds:
        raise PolicyError(f"the egress guard holds an answer back: {code}", code=code)


def _receipt(data: bytes) -> Receipt:
    try:
        return parse(Receipt, data, max_bytes=MAX_RECEIPT_BYTES)
    except WireError as error:
        raise PolicyError("the receipt has another form", code="egress_receipt") from error


def _check_body(receipt: Receipt) -> None:
    try:
        body = BODIES[receipt.kind].model_validate_json(canonical_bytes(receipt.body), strict=True)
        same = body.model_dump(mode="json") == receipt.body
    except (ValidationError, ValueError) as error:
        raise PolicyError("the body has another form", code="egress_body") from error
    _require(same, "egress_body")
    _require(all(round(each, 3) == each for each in receipt.seconds.values()), "egress_seconds")


def _values(
    manifest: StepManifest,
    layout: Layout,
    receipt: Receipt,
    array: Packed | None,
    coding: UpdateCoding,
) -> Packed | None:
    """The values behind the array, whose size, digest and coding are right."""
    decoders = Decoders(coding if manifest.kind == "train" else None)
    carried = decoders.carried(layout)
    _require((array is None) == (carried.num_values == 0), "egress_bytes")
    if array is None:
        _require(receipt.update_sha256 is None, "egress_digest")
        return None
    right_size = array.dtype.name == carried.dtype and array.shape == (carried.num_values,)
    _require(right_size, "egress_bytes")
    _require(receipt.update_sha256 == sha256_hex(as_bytes(array)), "egress_digest")
    decoder = decoders.of(layout)
    if decoder is None:
        return array
    if isinstance(coding, Int8Update):
        _check_int8(array, layout.num_values, coding.block)
    try:
        return decoder.decode(array)
    except WireError as error:
        raise PolicyError("no update is coded like this", code="egress_coding") from error


def _check_int8(coded: Packed, num_values: int, block: int) -> None:
    """Scales are finite and not negative, and every block uses its range, as coding makes them."""
    num_blocks = -(-num_values // block)
    flat = flat_tensor(coded)
    scales = flat[: 4 * num_blocks].view(torch.float32)
    codes = flat[4 * num_blocks :].view(torch.int8)
    _require(bool(torch.isfinite(scales).all()), "egress_coding")
    _require(not bool(torch.signbit(scales).any()), "egress_coding")
    for start in range(0, num_blocks, 4096):
        part = codes[start * block : (start + 4096) * block]
        filled = torch.nn.functional.pad(part, (0, -len(part) % block)).view(-1, block)
        largest = filled.to(torch.int16).abs().amax(dim=1)
        used = (largest >= _LEAST_CODE) & (largest <= 127)
        empty = largest == 0
        nothing = scales[start : start + len(filled)] == 0
        _require(bool((used & ~nothing | empty & nothing).all()), "egress_coding")


def _magnitudes(values: Packed) -> tuple[float, float]:
    """Largest magnitude and L2 norm, in float64, block by block; NaN and Inf carry through."""
    largest, squares = 0.0, 0.0
    for part in flat_tensor(values).split(_BLOCK):  # type: ignore[no-untyped-call]
        block = part.double()
        squares += float(block.dot(block))
        largest = float(np.maximum(largest, float(block.abs().max())))
    return largest, float(np.sqrt(squares))
