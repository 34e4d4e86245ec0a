"""What the doctor finds, and the report of it; both are for the site's own eyes and stay there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal

from wardround_client.data.findings import SchemaError
from wardround_common.errors import WardroundError

Severity = Literal["fault", "warning", "note"]
_SIGNS: dict[Severity, str] = {"fault": "FAULT", "warning": "warning", "note": "note"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Attributes:
        code: stable.
        severity: a fault makes a run fail or mislead; a note says what was not looked at.
        message: what is wrong, where, and what to do.
    """

    code: str
    severity: Severity
    message: str


@dataclass(slots=True)
class Checkup:
    """All that was found at a site.

    Attributes:
        site: its name; empty if its file cannot be read.
        findings: in the order in which they were found.
        measured: what was measured -> value: ``train_s`` (seconds of one training round),
            ``examples_per_s``, ``peak_mib`` (this process, or the GPU), ``answer_bytes``; by
            federation, ``NAME.train_s``.
        seconds: that the check took.
    """

    site: str = ""
    findings: list[Finding] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def num_faults(self) -> int:
        """Findings that are faults."""
        return sum(each.severity == "fault" for each in self.findings)

    def fault(self, code: str, message: str) -> None:
        """Something that a run would fail by, or be misled."""
        self.findings.append(Finding(code, "fault", message))

    def warn(self, code: str, message: str) -> None:
        """Something that somebody should know."""
        self.findings.append(Finding(code, "warning", message))

    def note(self, code: str, message: str) -> None:
        """Something that was not looked at."""
        self.findings.append(Finding(code, "note", message))

    @contextmanager
    def noting(self) -> Iterator[None]:
        """What goes wrong inside in an expected way, as faults."""
        try:
            yield
        except SchemaError as error:
            for each in error.findings:
                self.fault(each.code, str(each))
        except WardroundError as error:
            self.fault(error.code, str(error))

    def to_json(self) -> str:
        """As one object."""
        return json.dumps(asdict(self) | {"faults": self.num_faults}, indent=2)

    def to_text(self) -> str:
        """For people."""
        lines = [f"{_SIGNS[each.severity]:8} {each.code}: {each.message}" for each in self.findings]
        lines += [f"measured {name} = {value:,.4g}" for name, value in self.measured.items()]
        faults = f"{self.num_faults} fault{'' if self.num_faults == 1 else 's'}"
        return "\n".join([*lines, f"{self.site or 'site'}: {faults}, {self.seconds:.0f} s"])
