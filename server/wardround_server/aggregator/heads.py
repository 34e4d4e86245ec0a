"""Heads of the sites' audit logs, as they came with answers and were journalled."""

import json
from pathlib import Path

from wardround_common.audit.heads import SignedHead, parse_head
from wardround_common.canonical import canonical_bytes
from wardround_common.errors import ConfigError


def newest_head(run: Path, site: str) -> SignedHead:
    """The newest head that a site sent in a run.

    Args:
        run: the run's folder.
        site: of the roster.

    Raises:
        ConfigError: it sent none (``no_head``).
        IntegrityError: its signature is wrong.
    """
    heads = []
    journal = run / "journal" / "journal.jsonl"
    for line in journal.read_bytes().splitlines() if journal.exists() else ():
        receipt = json.loads(line).get("receipt") or {}
        if receipt.get("site") == site and receipt.get("head"):
            heads.append(parse_head(canonical_bytes(receipt["head"])))
    if not heads:
        raise ConfigError(
            f"{site}: no answer of this site with a head is in {journal}; name a site that took part",
            code="no_head",
        )
    return max(heads, key=lambda head: head.size)
