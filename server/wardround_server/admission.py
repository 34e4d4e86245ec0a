"""The gate before any arithmetic: what a site sent is checked whole, or refused whole.

The rules, in the order in which they are applied; the first that fails names the refusal:

1. The receipt is canonical JSON of bounded size and exactly of our form.
2. It answers *this* manifest (digest), as *this* site, which is in the cohort, for the first time. If
   the manifest is signed, so is the receipt, and the head of the site's audit log in it, by the one key
   that the site has had since its first answer.
3. Its tensor list is the manifest's: same names, order, dtypes, shapes.
4. The byte count is the promised one. Until here nothing was allocated for the array.
5. The array's digest is the receipt's; an array handed over within one process may have none, and one
   that was hashed while it came is not hashed again. A coded update is decoded then, into memory that
   all updates share.
6. The weight is a whole number from 1 to the manifest's cap, and the one the site gave at the start.
7. Every value is finite and within the manifest's bound, the L2 norm within its limit, and sums
   are such as data can have: one site's impossible sums must not spoil those of all.
8. The body has the form that this kind of step promises, and a site that describes itself runs this
   version: another one may compute other bytes.

A refusal costs the site its contribution to this step; the run goes on without it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ValidationError

from wardround_common import __version__
from wardround_common.canonical import canonical_bytes
from wardround_common.errors import IntegrityError, RefusedError, WireError
from wardround_common.exact_head import can_be_sums
from wardround_common.moments import can_be_moments
from wardround_common.types import Digest, SiteId, sha256_hex
from wardround_common.wire.bodies import BODIES, DescribeBody
from wardround_common.wire.codecs.decoders import Decoder
from wardround_common.wire.layout import Packed, as_bytes, flat_tensor
from wardround_common.wire.step import (
    MAX_RECEIPT_BYTES,
    Receipt,
    StepManifest,
    WireModel,
    layout_to_wire,
    parse,
)
from wardround_server.mapped import windows

OTHER_VERSION = "other_version"
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Admitted:
    """A contribution that passed every rule.

    Attributes:
        site: whose it is.
        receipt: the site's receipt.
        received: the same as it came.
        body: its typed body.
        update: the array, decoded; None where the step wants none.
        coded: the array as it came; None likewise.
    """

    site: SiteId
    receipt: Receipt
    received: bytes | Receipt
    body: WireModel
    update: Packed | None
    coded: Packed | None


def admit(
    manifest: StepManifest,
    site: SiteId,
    received: bytes | Receipt,
    update: Packed | None,
    *,
    subjects_of: Mapping[SiteId, int],
    handed_over: bool = False,
    digest: Digest | None = None,
    decoder: Decoder | None = None,
    key: str | None = None,
) -> Admitted:
    """Check one contribution.

    Args:
        manifest: what was asked.
        site: who the carrier says is answering.
        received: the receipt as received; the receipt itself where it never left this process.
        update: the array as received: a view of exactly ``manifest.reply_layout``'s dtype and
            size (carriers refuse other byte counts before they make the view), or None.
        subjects_of: training subjects that each site declared when the run began; a site that is
            not in it yet may declare.
        handed_over: the carrier knows that the array never left this process.
        digest: the array's, where the carrier hashed its bytes while they came.
        decoder: of coded updates; None where they are not coded.
        key: public key that the site signs by; None for one that has not answered yet.

    Raises:
        RefusedError: the first rule that failed, as a code.
    """
    receipt = received if isinstance(received, Receipt) else _parsed(received)
    _check_identity(manifest, site, receipt)
    _check_signature(manifest, receipt, key)
    _check_layout(manifest, receipt, update, decoder)
    _check_weight(manifest, site, receipt, subjects_of)
    if digest is None and update is not None:
        digest = _digest(receipt, update, handed_over=handed_over)
    if digest != receipt.update_sha256:
        raise RefusedError("the array is not the one the receipt names", code="update_digest")
    values = update if update is None or decoder is None else _decoded(update, decoder)
    if values is not None:
        _check_values(manifest, values)
    try:
        body = BODIES[manifest.kind].model_validate_json(canonical_bytes(receipt.body), strict=True)
    except (ValidationError, ValueError) as error:
        raise RefusedError("the body is not of the step's form", code="body_form") from error
    if isinstance(body, DescribeBody) and body.version != __version__:
        raise RefusedError("the site runs another version", code=OTHER_VERSION)
    return Admitted(site, receipt, received, body, values, update)


def _parsed(received: bytes) -> Receipt:
    try:
        return parse(Receipt, received, max_bytes=MAX_RECEIPT_BYTES)
    except WireError as error:
        raise RefusedError("the receipt is malformed", code=error.code) from error


def _check_identity(manifest: StepManifest, site: SiteId, receipt: Receipt) -> None:
    checks = (
        (receipt.run == manifest.run, "wrong_run"),
        (receipt.step == manifest.step, "wrong_step"),
        (receipt.round == manifest.round, "wrong_round"),
        (receipt.kind == manifest.kind, "wrong_kind"),
        (receipt.site == site, "wrong_site"),
        (site in manifest.sites, "not_in_cohort"),
        (receipt.manifest_sha256 == manifest.digest(), "wrong_manifest"),
    )
    for holds, code in checks:
        if not holds:
            raise RefusedError("the receipt does not answer this manifest", code=code)


def _check_signature(manifest: StepManifest, receipt: Receipt, key: str | None) -> None:
    if receipt.head is None:
        if manifest.coordinator is not None:
            raise RefusedError("no head of the site's log is in the receipt", code="receipt_head")
        return
    try:
        receipt.head.verify()
    except IntegrityError as error:
        raise RefusedError("the head of the site's log is not signed", code=error.code) from error
    if not receipt.is_signed:
        raise RefusedError("the site has not signed its receipt", code="receipt_signature")
    if key not in {None, receipt.head.key}:
        raise RefusedError("the site signs by another key than before", code="site_key_changed")


def _check_layout(
    manifest: StepManifest, receipt: Receipt, update: Packed | None, decoder: Decoder | None
) -> None:
    layout = manifest.reply_of(receipt.site)
    if receipt.tensors != layout_to_wire(layout):
        raise RefusedError("names, shapes, dtypes or order differ", code="layout_mismatch")
    wanted = layout if decoder is None else decoder.coded
    if (update is None) != (wanted.num_values == 0):
        raise RefusedError("an array is missing or not wanted", code="update_bytes")
    if update is not None and (
        update.dtype.name != wanted.dtype or update.shape != (wanted.num_values,)
    ):
        raise RefusedError("the array has not the promised size", code="update_bytes")


def _check_weight(
    manifest: StepManifest, site: SiteId, receipt: Receipt, subjects_of: Mapping[SiteId, int]
) -> None:
    if not 1 <= receipt.num_subjects <= manifest.subjects:
        raise RefusedError("the weight is not within the limits", code="weight_range")
    if receipt.num_examples < receipt.num_subjects:
        raise RefusedError("fewer examples than subjects", code="weight_range")
    if subjects_of.get(site, receipt.num_subjects) != receipt.num_subjects:
        raise RefusedError("the weight is not the one declared", code="weight_changed")


def _digest(receipt: Receipt, update: Packed, *, handed_over: bool) -> Digest | None:
    if handed_over and receipt.update_sha256 is None:
        return None
    return sha256_hex(as_bytes(update))


def _decoded(update: Packed, decoder: Decoder) -> Packed:
    try:
        return decoder.decode(update)
    except WireError as error:
        raise RefusedError("no update is coded like this", code=error.code) from error


def _check_values(manifest: StepManifest, update: Packed) -> None:
    if manifest.kind == "train" and quick_norm(update) <= 0.999 * min(
        manifest.bound, manifest.update_norm
    ):
        return  # no value is larger than the norm, and none is NaN
    largest, norm = magnitudes(update)
    if not np.isfinite(norm) or not np.isfinite(largest):
        raise RefusedError("a value is not finite", code="not_finite")
    if largest > manifest.bound:
        raise RefusedError("a value is too large", code="value_bound")
    if manifest.kind == "train" and norm > manifest.update_norm:
        raise RefusedError("the update is too long", code="update_norm")
    if not _can_be_sums(manifest, update):
        raise RefusedError("no data has such sums", code="impossible_sums")


def _can_be_sums(manifest: StepManifest, update: Packed) -> bool:
    if manifest.kind == "moments":
        return can_be_moments(update.astype(np.float64, copy=False))
    if manifest.kind == "gram":
        return can_be_sums(manifest.reply_layout, update.astype(np.float64, copy=False))
    return True


def quick_norm(update: Packed) -> float:
    """L2 norm to a relative 1e-5, in one pass at the memory's speed.

    NaN or Inf where a value is, or where squares overflow float32.
    """
    return math.sqrt(sum(float(torch.dot(block, block)) for block in _blocks(update)))


def magnitudes(update: Packed) -> tuple[float, float]:
    """Largest magnitude and L2 norm, in float64, block by block; NaN and Inf carry through."""
    largest, squares = 0.0, 0.0
    for part in _blocks(update):
        block = part.double()
        squares += float(block.dot(block))
        largest = float(np.maximum(largest, float(block.abs().max())))
    return largest, float(np.sqrt(squares))


def _blocks(update: Packed) -> Iterator[torch.Tensor]:
    """All values in pieces that stay in the cache while they are used twice."""
    flat = flat_tensor(update)
    for where in windows(update):
        yield from flat[where].split(_BLOCK)  # type: ignore[no-untyped-call]
