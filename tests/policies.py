"""Policies of test sites: one that allows all that a table federation asks for, and stricter ones."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.audit.heads import sign_head
from wardround_common.crypto.signing import SigningKey
from wardround_common.spec.policy import PolicySpec
from wardround_common.wire.step import StepManifest

COORDINATOR = SigningKey(Ed25519PrivateKey.from_private_bytes(b"coordinator of the tests' sites!"))
OPEN: dict[str, dict[str, Any]] = {
    "allow": {
        "coordinators": [COORDINATOR.public],
        "tasks": ["classification", "entities"],
        "steps": ["describe", "moments", "gram", "train", "evaluate", "compare"],
        "backbones": ["none", "f" * 64],
        "tensors": ["*"],
        "metrics": ["accuracy", "balanced_accuracy", "auc", "f1_macro"],
    },
    "limits": {
        "update_norm": 1e6,
        "update_values": 10**9,
        "min_subjects": 1,
        "min_sites": 1,
        "min_cell": 1,
        "decimals": 9,
        "rounds_per_day": 10**6,
        "runs_per_day": 10**6,
    },
    "demands": {"approval": "none", "differential_privacy": False, "secure_sums": False},
}


def policy(**changes: Any) -> PolicySpec:
    """The open policy with keys of its tables changed: ``limits__min_sites=3``, ``dry_run=True``."""
    return PolicySpec.model_validate_json(json.dumps(_changed(changes)))


def write_policy(folder: Path, **changes: Any) -> Path:
    """``policy.toml`` in a folder; see :func:`policy`."""
    path = folder / "policy.toml"
    path.write_text(tomli_w.dumps(_changed(changes)))
    return path


def asked(
    manifest: StepManifest, key: SigningKey = COORDINATOR, entries: int | None = None
) -> StepManifest:
    """A question as a coordinator asks it: with the head of the log of its run, and signed.

    Args:
        manifest: the question.
        key: the coordinator's.
        entries: length of the log; absent, it has four for each step.
    """
    size = 4 * manifest.step + 2 if entries is None else entries
    root = sha256(f"{manifest.run} {size}".encode()).digest()
    return manifest.model_copy(update={"head": sign_head(key, size, root)}).signed(key)


def _changed(changes: dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = {name: dict(table) for name, table in OPEN.items()}
    for key, value in changes.items():
        table, _, name = key.partition("__")
        if not name:
            raw[table] = value
        elif value is None:
            raw[table].pop(name, None)
        else:
            raw[table][name] = value
    return raw
