"""Structured events for operators: one JSON object a line, and nothing else.

1. Keys come from an allow-list, values are numbers, truth values or short codes (site names, codes,
   digests). Free text, paths, exceptions and data have no way in.
2. An event is named by verbs in the past: ``round_completed``, ``update_refused``.
3. What breaks these rules raises where ``WARDROUND_LOG_STRICT=1`` (tests) and is left out
   otherwise: a log never stops a round, and never prints what it should not.

This is the operations log. What must be provable later belongs in the audit log.
"""

import contextlib
import json
import math
import os
import re
from datetime import UTC, datetime
from typing import Final, TextIO

LogValue = int | float | bool | str

KEYS: Final = frozenset(
    {
        "aggregate_sha256",
        "attempt",
        "bytes_in",
        "bytes_out",
        "code",
        "deadline_s",
        "engine",
        "epoch",
        "exit_status",
        "learning_rate",
        "loss",
        "manifest_sha256",
        "metric",
        "mode",
        "model_sha256",
        "num_examples",
        "num_federations",
        "num_late",
        "num_missing",
        "num_quarantined",
        "num_rounds",
        "num_sites",
        "num_subjects",
        "phase",
        "process",
        "resumed",
        "round",
        "run",
        "seconds",
        "seed",
        "site",
        "spec_sha256",
        "speedup",
        "threads",
        "update_norm",
        "update_sha256",
        "value",
    }
)
EVENT: Final = re.compile(r"[a-z]{2,30}(_[a-z]{2,30}){1,4}")
SHORT_CODE: Final = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,63}")

_stream: TextIO | None = None


def set_log_stream(stream: TextIO | None) -> None:
    """Choose where events go.

    Args:
        stream: open for text; None, as at the start, writes nothing.
    """
    global _stream  # noqa: PLW0603  one operations log a process
    _stream = stream


def log_event(event: str, **fields: LogValue) -> None:
    """Write one event.

    Args:
        event: what happened, such as ``round_completed``.
        **fields: keys of :data:`KEYS`; finite numbers, truth values, or text of at most 64
            lower-case letters, digits and ``_ . : -``.

    Raises:
        ValueError: a rule is broken and the log is strict.
    """
    strict = os.environ.get("WARDROUND_LOG_STRICT") == "1"
    if EVENT.fullmatch(event) is None:
        if strict:
            raise ValueError("an event is named in lower-case words, a verb in the past among them")
        event = "event_unnamed"
    allowed = {key: value for key, value in fields.items() if key in KEYS and is_plain(value)}
    if strict and len(allowed) != len(fields):
        raise ValueError(f"not allowed in the log: {', '.join(sorted(set(fields) - set(allowed)))}")
    if _stream is None:
        return
    record: dict[str, LogValue] = {"time": _now(), "event": event, **allowed}
    if len(allowed) != len(fields):
        record["num_dropped"] = len(fields) - len(allowed)
    with contextlib.suppress(OSError, ValueError):  # a full disk or a closed stream
        _stream.write(json.dumps(record, separators=(",", ":")) + "\n")
        _stream.flush()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def is_plain(value: object) -> bool:
    """Whether a value is a finite number, a truth value or a short code."""
    if isinstance(value, str):
        return SHORT_CODE.fullmatch(value) is not None
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)
