"""The hospital's control point in its worker: what may leave is decided, looked at and written down.

The rules:

1. Each question is judged when it comes and again when its turn comes; a refusal is an entry in the
   audit log, once.
2. What was computed passes disclosure control and the egress guard before it is kept as an answer.
3. An answer is handed over after an entry that says so is durable, each time that it is.
4. Each answer carries the log's signed head and is signed by the log's key, so that the aggregator keeps
   what this site cannot change. The head of the aggregator's own log comes with each question and is
   kept here; a question whose head is behind one that was answered is refused: history was rewritten.
5. Updates and runs of a day are counted from the log, so that no restart begins a new day.
6. In one run each kind of question is answered once, those of a training round once a round: who may ask
   again with another model or scale could subtract the answers. Columns are standardised in one way. The very same question has the same bytes.
7. The patients behind an answer are remembered before it leaves; see :mod:`wardround_client.policy.cohorts`.
"""

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from wardround_client.data.identities import Identities
from wardround_client.policy.approvals import Approvals
from wardround_client.policy.cohorts import Cohorts
from wardround_client.policy.disclosure import disclosed, require_no_small_counts
from wardround_client.policy.egress import Leaving, guard
from wardround_client.policy.heads import AggregatorHeads
from wardround_client.policy.released import Released
from wardround_client.policy.rules import PolicyError, require_allowed
from wardround_client.worker.answers import Stored
from wardround_common.audit.entries import Value
from wardround_common.audit.log import AuditLog
from wardround_common.audit.retention import DEFAULT_YEARS
from wardround_common.audit.verify import verified
from wardround_common.canonical import canonical_bytes
from wardround_common.durable import make_folder, replace_file
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.policy import PolicySpec
from wardround_common.types import Digest, SiteId, sha256_hex
from wardround_common.wire.layout import Packed, as_bytes
from wardround_common.wire.step import MAX_RECEIPT_BYTES, Receipt, StepManifest, parse

AUDIT: Final = "audit"
APPROVALS: Final = "approvals"
HEADS: Final = "aggregator-heads"
COHORTS: Final = "cohorts"
WITHHELD: Final = "withheld"
_MAX_REFUSALS: Final = 10_000
"""Entries of one life: who asks nonsense without end does not fill the disk."""


def policy_digest(policy: PolicySpec) -> Digest:
    """What names a policy in the log."""
    return sha256_hex(canonical_bytes(policy.model_dump(mode="json")))


class SiteControl:
    """Judges, guards and records for one site.

    Args:
        site: its name.
        policy: the hospital's.
        state: the worker's folder: log, approvals and withheld answers are in it.
        now: local time, with its zone.
        audit_years: for which entries of the audit log are kept.

    Raises:
        IntegrityError: the audit log is damaged.
    """

    def __init__(
        self,
        site: SiteId,
        policy: PolicySpec,
        state: Path,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
        audit_years: int = DEFAULT_YEARS,
    ) -> None:
        self._site = site
        self._policy = policy
        self._now = now
        self._withheld = state / WITHHELD
        self._approvals = Approvals(state / APPROVALS)
        self._heads = AggregatorHeads(state / HEADS)
        self._cohorts = Cohorts(state / COHORTS)
        self._log = AuditLog(state / AUDIT, keep_years=audit_years)
        self._log.append("policy_loaded", policy_sha256=policy_digest(policy))
        self._lock = threading.Lock()
        self._refused: set[tuple[str, str]] = set()
        self._approved: set[str] = set()
        self._norms: dict[str, float] = {}
        self._released = Released()
        for entry in verified(state / AUDIT).entries:
            if entry.event == "update_released":
                self._released.add(entry.at[:10], entry.fields)

    def admit(self, manifest: StepManifest, federation: FederationSpec) -> None:
        """Let a question pass that the policy allows now.

        Args:
            manifest: what is asked.
            federation: the file that it names.

        Raises:
            PolicyError: the first rule that is broken, as its code.
        """
        require_allowed(self._policy, federation, manifest, self._now())
        self._heads.check(manifest)
        self._require_first(manifest)
        self._require_approval(manifest, federation)
        self._require_runs_left(manifest)
        if manifest.kind == "train":
            self._require_rounds_left(manifest)
        if self._policy.dry_run and self._withheld_path(manifest).exists():
            raise _held_back()

    def admit_patients(self, num_subjects: int, patients: Mapping[str, Identities]) -> None:
        """Let a question pass if there are enough patients, and none of them can be singled out.

        Args:
            num_subjects: training subjects.
            patients: see :meth:`Cohorts.check`.

        Raises:
            PolicyError: ``policy_subjects`` or ``policy_differencing``.
        """
        if num_subjects < self._policy.limits.min_subjects:
            raise PolicyError(
                f"{num_subjects} training subjects, limits.min_subjects in policy.toml is "
                f"{self._policy.limits.min_subjects}",
                code="policy_subjects",
            )
        self._cohorts.check(patients, self._policy.limits.min_cell)

    def clear(
        self,
        manifest: StepManifest,
        federation: FederationSpec,
        receipt: Receipt,
        update: Packed | None,
        patients: Mapping[str, Identities],
    ) -> Leaving:
        """What may leave of a computed answer.

        Raises:
            PolicyError: it has another form (``egress_...``), or this is a dry run.
        """
        shown = disclosed(receipt, self._policy).model_copy(update={"head": self._log.head})
        require_no_small_counts(manifest.kind, update, self._policy)
        leaving = Leaving(shown.signed(self._log.key).to_bytes(), update)
        norm = guard(
            manifest,
            self._site,
            leaving,
            coding=federation.exchange.update,
            update_norm=self._policy.limits.update_norm or 0.0,
        )
        if self._policy.dry_run:
            self._withhold(manifest, leaving)
            raise _held_back()
        self._cohorts.keep(patients)
        if manifest.kind == "train":
            self._norms = {manifest.digest(): norm}
        return leaving

    def release(self, manifest: StepManifest, stored: Stored) -> Stored:
        """Write down that an answer is handed over now; it may be sent when this returns."""
        fields: dict[str, Value] = {
            **_question(manifest),
            "receipt_sha256": sha256_hex(stored.receipt),
            "bytes_out": len(stored.receipt) + stored.array_bytes,
        }
        if manifest.moments is not None:
            fields["moments_sha256"] = manifest.moments.digest()
        receipt = parse(Receipt, stored.receipt, max_bytes=MAX_RECEIPT_BYTES)
        if receipt.update_sha256 is not None:
            fields["update_sha256"] = receipt.update_sha256
        if manifest.digest() in self._norms:
            fields["update_norm"] = self._norms[manifest.digest()]
        self._heads.keep(manifest)
        self._log.append("update_released", **fields)
        with self._lock:
            self._released.add(_today(), fields)
        return stored

    def refused(self, manifest: StepManifest, code: str) -> None:
        """Write down that a question was not answered, and why; once for each question and reason."""
        with self._lock:
            what = (manifest.digest(), code)
            if what in self._refused or len(self._refused) >= _MAX_REFUSALS:
                return
            self._refused.add(what)
        self._log.append("step_refused", **_question(manifest), code=code)

    def _require_approval(self, manifest: StepManifest, federation: FederationSpec) -> None:
        if self._policy.demands.approval == "none":
            return
        if not self._approvals.is_approved(manifest.run, manifest.spec_sha256):
            with self._lock:
                self._approved.discard(manifest.run)  # approved again, it is written down again
            self._approvals.ask(manifest, federation)
            raise PolicyError(
                f"run {manifest.run} waits for `wardround site approve SITE.toml {manifest.run}`",
                code="policy_approval",
            )
        with self._lock:
            is_new = manifest.run not in self._approved
            self._approved.add(manifest.run)
        if is_new:
            self._log.append("run_approved", run=manifest.run, spec_sha256=manifest.spec_sha256)

    def _require_first(self, manifest: StepManifest) -> None:
        with self._lock:
            answered = self._released.question(manifest.run, manifest.kind, manifest.round)
            moments = self._released.moments(manifest.run)
        if answered not in {None, manifest.digest()}:
            raise PolicyError(
                f"run {manifest.run}: another question of kind {manifest.kind!r} in round "
                f"{manifest.round} was answered; an honest run asks once",
                code="policy_repeated",
            )
        if manifest.moments is not None and moments not in {None, manifest.moments.digest()}:
            raise PolicyError(
                f"run {manifest.run}: columns were standardised in another way before",
                code="policy_repeated",
            )

    def _require_runs_left(self, manifest: StepManifest) -> None:
        with self._lock:
            runs = self._released.runs(_today())
        if manifest.run not in runs and len(runs) >= self._policy.limits.runs_per_day:
            raise PolicyError(
                f"{len(runs)} runs were answered today (UTC), limits.runs_per_day in policy.toml is "
                f"{self._policy.limits.runs_per_day}",
                code="policy_runs_per_day",
            )

    def _require_rounds_left(self, manifest: StepManifest) -> None:
        with self._lock:
            sent = self._released.updates(_today())
        if manifest.digest() in sent:
            return  # the same stored bytes again
        if len(sent) >= self._policy.limits.rounds_per_day:
            raise PolicyError(
                f"{len(sent)} updates have left today (UTC), limits.rounds_per_day in policy.toml is "
                f"{self._policy.limits.rounds_per_day}",
                code="policy_rounds_per_day",
            )

    def _withhold(self, manifest: StepManifest, leaving: Leaving) -> None:
        path = self._withheld_path(manifest)
        make_folder(path.parent)
        if leaving.array is not None:
            replace_file(path.with_suffix(".array"), as_bytes(leaving.array))
        replace_file(path, leaving.receipt)
        self._log.append(
            "update_withheld", **_question(manifest), receipt_sha256=sha256_hex(leaving.receipt)
        )

    def _withheld_path(self, manifest: StepManifest) -> Path:
        return self._withheld / manifest.run / f"{manifest.step}-{manifest.kind}.json"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _held_back() -> PolicyError:
    return PolicyError(
        "policy.toml says dry_run: the answer is kept, not sent", code="policy_dry_run"
    )


def _question(manifest: StepManifest) -> dict[str, Value]:
    head = manifest.head
    return {
        "asker_entries": 0 if head is None else head.size,
        "asker_root": "none" if head is None else head.root,
        "run": manifest.run,
        "step": manifest.step,
        "kind": manifest.kind,
        "round": manifest.round,
        "spec_sha256": manifest.spec_sha256,
        "manifest_sha256": manifest.digest(),
    }
