"""Seeds: one independent stream for each purpose, site and round."""

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed bound to a run's seed and a purpose.

    The first 63 bits of SHA-256 over the parts, so that streams of different sites, rounds and
    purposes are unrelated, and the same everywhere.
    """
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
