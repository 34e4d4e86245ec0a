"""The ways in which a training update can be wrong: each with the code that refuses it.

Every kind takes the honest arrival (and the site's earlier ones) and gives what arrives instead.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.support import Arrival, edited, with_update
from wardround_common.canonical import canonical_bytes

Make = Callable[[Arrival, list[Arrival]], Arrival]
NORM = 100.0
"""The federation's limit on an update's norm (the default)."""


@dataclass(frozen=True)
class Malformed:
    """One kind: how it is made, and the code it must be refused with."""

    make: Make
    code: str

    def fault(self, honest: Arrival, past: list[Arrival]) -> list[Arrival]:
        """As a fault of a carrier's site."""
        return [self.make(honest, past)]


def _data(change: Callable[[bytes], bytes]) -> Make:
    return lambda honest, past: replace(honest, data=change(np.asarray(honest.data).tobytes()))


def _values(change: Callable[[np.ndarray], Any]) -> Make:
    def make(honest: Arrival, past: list[Arrival]) -> Arrival:
        update = np.array(honest.data)
        changed = change(update)
        return with_update(honest, update if changed is None else changed)

    return make


def _place(place: int, value: float) -> Make:
    return _values(lambda update: update.__setitem__(place, value))


def _tensors(change: Callable[[list[Any]], Any]) -> Make:
    def make(honest: Arrival, past: list[Arrival]) -> Arrival:
        tensors = json.loads(honest.receipt or b"")["tensors"]
        changed = change(tensors)
        return edited(honest, tensors=tensors if changed is None else changed)

    return make


def _fields(**fields: Any) -> Make:
    return lambda honest, past: edited(honest, **fields)


def _body(**fields: Any) -> Make:
    def make(honest: Arrival, past: list[Arrival]) -> Arrival:
        body = {**json.loads(honest.receipt or b"")["body"], **fields}
        return edited(honest, body={k: v for k, v in body.items() if v is not None})

    return make


def _raw(change: Callable[[bytes], bytes]) -> Make:
    return lambda honest, past: replace(honest, receipt=change(honest.receipt or b""))


def _step(honest: Arrival, past: list[Arrival]) -> Arrival:
    return edited(honest, step=honest.step + 1)


def _replayed(honest: Arrival, past: list[Arrival]) -> Arrival:
    return replace(past[-1], step=honest.step, data=honest.data)


def _replayed_whole(honest: Arrival, past: list[Arrival]) -> Arrival:
    return replace(past[-1], step=honest.step)


def _replay_with_new_numbers(honest: Arrival, past: list[Arrival]) -> Arrival:
    now = json.loads(honest.receipt or b"")
    numbers = {key: now[key] for key in ("step", "round")}
    return replace(edited(past[-1], **numbers), step=honest.step)


def _deep(data: bytes) -> bytes:
    return b"[" * 100_000 + b"]" * 100_000


def _deep_body(data: bytes) -> bytes:
    return data.replace(b'"body":{', b'"body":{"x":' + b'{"x":' * 400 + b"1" + b"}" * 400 + b",")


MALFORMED: dict[str, Malformed] = {
    # the array
    "array one byte short": Malformed(_data(lambda b: b[:-1]), "update_bytes"),
    "array half": Malformed(_data(lambda b: b[: len(b) // 2]), "update_bytes"),
    "array with bytes after it": Malformed(_data(lambda b: b + b"\0" * 4), "update_bytes"),
    "array empty": Malformed(_data(lambda b: b""), "update_bytes"),
    "array of a thousand times the size": Malformed(_data(lambda b: b * 1000), "update_bytes"),
    "array missing": Malformed(lambda honest, past: replace(honest, data=None), "update_bytes"),
    "array of another dtype": Malformed(_values(lambda u: u.astype(np.float64)), "update_bytes"),
    "array of integers": Malformed(_values(lambda u: u.astype(np.int32)), "update_bytes"),
    "array of two dimensions": Malformed(_values(lambda u: u.reshape(2, -1)), "update_bytes"),
    # what the receipt says about it
    "another name": Malformed(_tensors(lambda t: t[0].__setitem__(0, "other")), "layout_mismatch"),
    "another shape of the same size": Malformed(
        _tensors(lambda t: t[0].__setitem__(2, [3, 2])), "layout_mismatch"
    ),
    "another dtype named": Malformed(
        _tensors(lambda t: t[0].__setitem__(1, "float64")), "layout_mismatch"
    ),
    "dtype that does not exist": Malformed(
        _tensors(lambda t: t[0].__setitem__(1, "int64")), "message_form"
    ),
    "another order": Malformed(_tensors(lambda t: t[::-1]), "layout_mismatch"),
    "one tensor too many": Malformed(
        _tensors(lambda t: [*t, ["extra", "float32", [0]]]), "layout_mismatch"
    ),
    "one tensor missing": Malformed(_tensors(lambda t: t[:1]), "layout_mismatch"),
    "no tensors": Malformed(_tensors(lambda t: []), "layout_mismatch"),
    "a name twice": Malformed(_tensors(lambda t: [t[0], t[0]]), "layout_mismatch"),
    "shape of gigabytes": Malformed(
        _tensors(lambda t: t[0].__setitem__(2, [2**40, 2**40])), "layout_mismatch"
    ),
    "negative shape": Malformed(_tensors(lambda t: t[0].__setitem__(2, [-1])), "layout_mismatch"),
    "twenty thousand tensors": Malformed(
        _tensors(lambda t: [[f"t{i}", "float32", [2**40]] for i in range(20_000)]),
        "layout_mismatch",
    ),
    # values
    "NaN first": Malformed(_place(0, np.nan), "not_finite"),
    "NaN last": Malformed(_place(-1, np.nan), "not_finite"),
    "plus infinity": Malformed(_place(3, np.inf), "not_finite"),
    "minus infinity": Malformed(_place(3, -np.inf), "not_finite"),
    "infinity and NaN": Malformed(
        _values(lambda u: u.__setitem__(slice(2), [np.inf, np.nan])), "not_finite"
    ),
    "a value above the bound": Malformed(_place(2, 1.01 * NORM), "value_bound"),
    "the largest float": Malformed(_place(2, float(np.finfo(np.float32).max)), "value_bound"),
    "a huge norm": Malformed(_values(lambda u: u.fill(0.9 * NORM)), "update_norm"),
    # the weight
    "weight zero": Malformed(_fields(num_subjects=0), "weight_range"),
    "weight negative": Malformed(_fields(num_subjects=-10), "weight_range"),
    "weight above the cap": Malformed(
        _fields(num_subjects=100_001, num_examples=100_001), "weight_range"
    ),
    "weight of 400 digits": Malformed(_fields(num_subjects=10**400), "weight_range"),
    "weight a float": Malformed(_fields(num_subjects=10.0), "message_form"),
    "weight true": Malformed(_fields(num_subjects=True), "message_form"),
    "weight a string": Malformed(_fields(num_subjects="10"), "message_form"),
    "weight null": Malformed(_fields(num_subjects=None), "message_form"),
    "weight changed since the start": Malformed(_fields(num_subjects=2), "weight_changed"),
    "fewer examples than subjects": Malformed(_fields(num_examples=1), "weight_range"),
    "examples of 400 digits": Malformed(_fields(num_examples=10**400), "message_form"),
    # whose answer to what
    "replay of an earlier step's receipt": Malformed(_replayed, "wrong_step"),
    "replay of an earlier answer": Malformed(_replayed_whole, "wrong_step"),
    "replay under new numbers": Malformed(_replay_with_new_numbers, "wrong_manifest"),
    "another run": Malformed(_fields(run="f" * 16), "wrong_run"),
    "another step": Malformed(_step, "wrong_step"),
    "another round": Malformed(_fields(round=9), "wrong_round"),
    "another kind": Malformed(_fields(kind="gram"), "wrong_kind"),
    "another site": Malformed(_fields(site="a"), "wrong_site"),
    "another manifest": Malformed(_fields(manifest_sha256="0" * 64), "wrong_manifest"),
    "another protocol": Malformed(_fields(protocol=2), "message_form"),
    # digests
    "digest of other bytes": Malformed(_fields(update_sha256="0" * 64), "update_digest"),
    "no digest": Malformed(_fields(update_sha256=None), "update_digest"),
    "digest in capitals": Malformed(_fields(update_sha256="A" * 64), "message_form"),
    # the bytes of the receipt
    "receipt empty": Malformed(_raw(lambda b: b""), "json_malformed"),
    "receipt cut": Malformed(_raw(lambda b: b[:-1]), "json_malformed"),
    "receipt above one mebibyte": Malformed(_body(padding="x" * (1 << 20)), "json_too_large"),
    "receipt nested a hundred thousand deep": Malformed(_raw(_deep), "json_malformed"),
    "body nested four hundred deep": Malformed(_raw(_deep_body), "json_not_canonical"),
    "receipt with spaces": Malformed(_raw(lambda b: b.replace(b":", b": ")), "json_not_canonical"),
    "receipt with a newline": Malformed(_raw(lambda b: b + b"\n"), "json_not_canonical"),
    "receipt with a key twice": Malformed(
        _raw(lambda b: b'{"body":{},' + b[1:]), "json_not_canonical"
    ),
    "receipt with keys out of order": Malformed(
        _raw(lambda b: json.dumps(dict(reversed(json.loads(b).items()))).encode()),
        "json_not_canonical",
    ),
    "receipt not UTF-8": Malformed(
        _raw(lambda b: b.replace(b'"train"', b'"tr\xff"')), "json_malformed"
    ),
    "receipt not ASCII": Malformed(
        _raw(lambda b: b.replace(b'"kind":"train"', '"kind":"trän"'.encode())),
        "json_not_canonical",
    ),
    "receipt in UTF-16": Malformed(
        _raw(lambda b: b.decode().encode("utf-16")), "json_not_canonical"
    ),
    "receipt a number": Malformed(_raw(lambda b: b"1"), "message_form"),
    "receipt null": Malformed(_raw(lambda b: b"null"), "message_form"),
    "receipt a list": Malformed(_raw(lambda b: b"[" + b + b"]"), "message_form"),
    "receipt with an unknown field": Malformed(_fields(admin=True), "message_form"),
    "receipt without a field": Malformed(
        _raw(lambda b: canonical_bytes({k: v for k, v in json.loads(b).items() if k != "run"})),
        "message_form",
    ),
    "time of an unknown phase": Malformed(_fields(seconds={"sleep": 1.0}), "message_form"),
    "time negative": Malformed(_fields(seconds={"train": -1.0}), "message_form"),
    "time beyond all floats' sums": Malformed(_fields(seconds={"train": 1e308}), "message_form"),
    # the body
    "body of another kind": Malformed(
        lambda honest, past: edited(
            honest, body={"loss": 0.1, "metric": 0.5, "num_validation_subjects": 3}
        ),
        "body_form",
    ),
    "body empty": Malformed(lambda honest, past: edited(honest, body={}), "body_form"),
    "body with an extra field": Malformed(_body(note="seen by Dr Example"), "body_form"),
    "body without a field": Malformed(_body(loss=None), "body_form"),
    "body with NaN": Malformed(
        _raw(lambda b: b.replace(b'"loss":0.', b'"loss":NaN,"x":0.')), "json_malformed"
    ),
    "body with infinity": Malformed(
        _raw(lambda b: b.replace(b'"loss":0.', b'"loss":1e999,"x":0.')), "json_malformed"
    ),
    "body with a loss near the largest float": Malformed(_body(loss=1e308), "body_form"),
    "body with a loss as text": Malformed(_body(loss="0.3"), "body_form"),
    "body with negative steps": Malformed(_body(num_steps=-1), "body_form"),
    "body with steps of 400 digits": Malformed(_body(num_steps=10**400), "body_form"),
    # instead of an answer
    "nothing but the name": Malformed(
        lambda honest, past: Arrival(honest.site, honest.step), "no_receipt"
    ),
    "a failure": Malformed(
        lambda honest, past: Arrival(honest.site, honest.step, failure="missing_column"),
        "missing_column",
    ),
}
