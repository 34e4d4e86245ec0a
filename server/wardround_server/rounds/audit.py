"""A run as the aggregator's audit log tells it.

1. An entry is durable before what it speaks of happens; after a crash it may be there twice, never not
   at all.
2. The log's signed head goes out with each question, and each site keeps it. The heads of the sites'
   logs come back with their answers and are in this log. So nobody can rewrite what happened alone.
"""

from typing import Protocol

from wardround_common.audit.heads import SignedHead
from wardround_common.audit.log import AuditLog
from wardround_common.types import Digest, SiteId
from wardround_common.wire.step import Receipt, StepManifest
from wardround_server.rounds.results import StepResult


class RunAudit(Protocol):
    """What the steps of a run tell; see :class:`LoggedRun`."""

    @property
    def head(self) -> SignedHead | None:
        """The log's newest head; None without a log."""
        ...

    def step_asked(self, manifest: StepManifest) -> None:
        """A question goes out."""
        ...

    def answer_admitted(self, manifest: StepManifest, receipt: Receipt, digest: Digest) -> None:
        """An answer counts."""
        ...

    def answer_refused(self, manifest: StepManifest, site: SiteId, code: str) -> None:
        """An answer does not count."""
        ...

    def step_finished(self, result: StepResult, produced: Digest | None) -> None:
        """A step counts, or is abandoned."""
        ...


class LoggedRun:
    """A run that is told to an audit log.

    Args:
        log: of the run; its key is the coordinator's, so that sites know whose its heads are.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    @property
    def head(self) -> SignedHead:
        """The log's newest head."""
        return self._log.head

    def step_asked(self, manifest: StepManifest) -> None:
        """Note what is asked, and of how many."""
        self._log.append(
            "step_asked",
            **_step(manifest),
            spec_sha256=manifest.spec_sha256,
            manifest_sha256=manifest.digest(),
            state_sha256=manifest.state_sha256,
            num_sites=len(manifest.sites),
        )

    def answer_admitted(self, manifest: StepManifest, receipt: Receipt, digest: Digest) -> None:
        """Note whose answer it is, what it is, and where its site's log stood."""
        head = receipt.head
        assert head is not None, "signed questions are answered by signed receipts"
        update = {} if receipt.update_sha256 is None else {"update_sha256": receipt.update_sha256}
        self._log.append(
            "answer_admitted",
            **_step(manifest),
            **update,
            site=receipt.site,
            receipt_sha256=digest,
            site_key=head.key,
            site_entries=head.size,
            site_root=head.root,
        )

    def answer_refused(self, manifest: StepManifest, site: SiteId, code: str) -> None:
        """Note whose answer does not count, and why."""
        self._log.append("answer_refused", **_step(manifest), site=site, code=code)

    def step_finished(self, result: StepResult, produced: Digest | None) -> None:
        """Note how many contributed and what came of it."""
        made = {} if produced is None else {"produced_sha256": produced}
        self._log.append(
            "step_finished",
            **_step(result.manifest),
            **made,
            abandoned=result.abandoned,
            num_sites=len(result.contributions),
            num_subjects=result.num_subjects,
        )


class _NoAudit:
    """A run that is told to nobody: all sites are in this process."""

    head: SignedHead | None = None

    def step_asked(self, manifest: StepManifest) -> None: ...

    def answer_admitted(self, manifest: StepManifest, receipt: Receipt, digest: Digest) -> None: ...

    def answer_refused(self, manifest: StepManifest, site: SiteId, code: str) -> None: ...

    def step_finished(self, result: StepResult, produced: Digest | None) -> None: ...


NO_AUDIT: RunAudit = _NoAudit()


def _step(manifest: StepManifest) -> dict[str, str | int]:
    return {"step": manifest.step, "kind": manifest.kind, "round": manifest.round}
