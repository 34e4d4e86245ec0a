"""One entry of an audit log, as a line of canonical JSON.

An entry says when, what and how much, in numbers, digests and short codes: no text that anybody
wrote, no path, and nothing of a patient. It carries the root of all entries before it, so that who
changes one has to change all that follow, and its own digest, so that damage is told from that.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround_common.canonical import canonical_bytes, parse_canonical
from wardround_common.errors import WardroundError, WireError
from wardround_common.log import is_plain
from wardround_common.types import HEX_DIGEST, sha256_hex

MAX_ENTRY_BYTES: Final = 4096
_KEY: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")

SiteEvent = Literal[
    "policy_loaded",
    "run_approved",
    "step_refused",
    "update_released",
    "update_withheld",
]
RunEvent = Literal[
    "run_opened",
    "step_asked",
    "answer_admitted",
    "answer_refused",
    "step_finished",
    "run_completed",
    "run_failed",
]
MembershipEvent = Literal[
    "site_invited",
    "site_enrolled",
    "site_renewed",
    "site_rotated",
    "site_revoked",
    "site_key_pinned",
    "run_ended",
]
LogEvent = Literal["log_opened", "log_repaired", "log_shortened"]
Event = LogEvent | SiteEvent | RunEvent | MembershipEvent
Value = int | float | bool | str
HexDigest = Annotated[str, Field(pattern=HEX_DIGEST)]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    at: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")
    before: HexDigest
    event: Event
    fields: dict[str, Value]
    index: int = Field(ge=0)
    sha256: HexDigest


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    Attributes:
        index: its place in the log, from 0.
        at: UTC, ISO 8601, to the millisecond.
        event: what happened.
        fields: numbers, truth values and short codes.
        before: root of all entries before it, hexadecimal.
    """

    index: int
    at: str
    event: Event
    fields: Mapping[str, Value]
    before: str

    def to_line(self) -> bytes:
        """The line, without its end.

        Raises:
            ValueError: a field is not a short code, or the line is too long.
        """
        odd = [k for k, v in self.fields.items() if not (_KEY.fullmatch(k) and is_plain(v))]
        if odd:
            raise ValueError(f"not allowed in an audit log: {', '.join(sorted(odd))}")
        content = self._content()
        line = canonical_bytes({**content, "sha256": sha256_hex(canonical_bytes(content))})
        if len(line) > MAX_ENTRY_BYTES:
            raise ValueError(
                f"an entry of {len(line)} bytes, at most {MAX_ENTRY_BYTES} are allowed"
            )
        return line

    def _content(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "before": self.before,
            "event": self.event,
            "fields": dict(self.fields),
            "index": self.index,
        }


class EntryError(WardroundError):
    """A line is no entry, or is damaged: ``entry_form`` or ``entry_changed``."""


def parse_entry(line: bytes) -> Entry:
    """An entry from its line.

    Raises:
        EntryError: it is none (``entry_form``), or not what its digest says (``entry_changed``).
    """
    try:
        parse_canonical(line, max_bytes=MAX_ENTRY_BYTES)
        read = _Line.model_validate_json(line)
    except (ValidationError, WireError) as error:
        raise EntryError("this is no entry", code="entry_form") from error
    content = read.model_dump(mode="json", exclude={"sha256"})
    if sha256_hex(canonical_bytes(content)) != read.sha256:
        raise EntryError("the entry is not what its digest says", code="entry_changed")
    return Entry(read.index, read.at, read.event, read.fields, read.before)
