"""What a step comes to: who contributed, who did not and why, and whether that is enough."""

from dataclasses import dataclass, field
from typing import Protocol

from wardround_common.types import SiteId
from wardround_common.wire.step import StepManifest, WireModel
from wardround_server.rounds.journal import Record


class Observer(Protocol):
    """Who watches a run; called from the engine's thread, must not raise."""

    def step_started(self, manifest: StepManifest) -> None:
        """A step goes out to its cohort."""
        ...

    def answer_arrived(self, kind: str, site: str, refusal: str | None) -> None:
        """A site's contribution was admitted, or refused with a code."""
        ...

    def step_ended(self, result: "StepResult") -> None:
        """A step counts, or was abandoned."""
        ...


@dataclass(frozen=True, slots=True)
class Contribution:
    """What is kept of an admitted answer: everything but the array."""

    num_subjects: int
    num_examples: int
    body: WireModel
    seconds: dict[str, float]


@dataclass(slots=True)
class StepResult:
    """How a step went.

    Attributes:
        manifest: what was asked.
        contributions: the sites that count.
        refused: (site, code) of refusals at admission and failures at sites.
        missing: sites that did not answer before the deadline.
        late: sites whose answer to an earlier step arrived during this one.
        abandoned: the quorum was not met: nothing of this step may be used.
        bytes_down: manifests and arrays sent.
        bytes_up: receipts and arrays received.
        seconds: wall time.
        recorded: the journal's closing record, when the step was finished before.
    """

    manifest: StepManifest
    contributions: dict[SiteId, Contribution] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    abandoned: bool = False
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    recorded: Record | None = None

    @property
    def num_subjects(self) -> int:
        """Training subjects behind the contributions."""
        return sum(part.num_subjects for part in self.contributions.values())


@dataclass(frozen=True, slots=True)
class Quorum:
    """What must come together for a step to count: named sites and subjects."""

    sites: int
    subjects: int

    def met(self, result: StepResult) -> bool:
        """Whether the contributions suffice."""
        return len(result.contributions) >= self.sites and result.num_subjects >= self.subjects
