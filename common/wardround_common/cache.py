"""Where this product keeps what it can make again: weights, prepared public data, features."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$WARDROUND_CACHE`` or ``~/.cache/wardround``; not made here."""
    chosen = os.environ.get("WARDROUND_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "wardround"
