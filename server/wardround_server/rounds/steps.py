"""One step: ask the cohort, admit what comes back, fold it, and decide whether it counts.

A step that is finished in the journal is not asked again; a step that was under way keeps the
answers that were already durable and asks only the other sites. Either way the result has the
same bytes as if nothing had happened.
"""

import time
from functools import partial
from typing import Any

import numpy as np

from wardround_common.audit.heads import SignedHead
from wardround_common.errors import IntegrityError, RefusedError
from wardround_common.spec.exchange import UpdateCoding
from wardround_common.types import Digest, SiteId, sha256_hex
from wardround_common.wire.bodies import BODIES
from wardround_common.wire.codecs.decoders import Decoders
from wardround_common.wire.layout import Layout, Packed, as_bytes, from_buffer
from wardround_common.wire.step import Receipt, StepManifest, WireModel
from wardround_server.admission import OTHER_VERSION, Admitted, admit
from wardround_server.rounds.audit import NO_AUDIT, RunAudit
from wardround_server.rounds.carrier import Answer, Carrier, Question, Spooled
from wardround_server.rounds.journal import Journal, Record
from wardround_server.rounds.members import EverySite, Members
from wardround_server.rounds.results import Contribution, Observer, Quorum, StepResult
from wardround_server.rounds.roster_order import Fetch, Fold, RosterOrder
from wardround_server.rounds.state import GlobalState

REVOKED = "site_revoked"


class StepRunner:
    """Runs steps one after the other.

    Args:
        carrier: how sites are reached.
        journal: where the run is recorded.
        observer: who watches.
        deadline_s: how long a step waits.
        store_updates: journal each update before it is folded, so that a restarted aggregator
            does not ask for it again. A simulation does without: it recomputes the same bytes.
        audit: the run's log; a simulation does without.
        members: the sites that are let in; who is no more is not asked, and its answer does not count.
    """

    def __init__(
        self,
        carrier: Carrier,
        journal: Journal,
        observer: Observer,
        *,
        deadline_s: float,
        store_updates: bool,
        audit: RunAudit = NO_AUDIT,
        members: Members | None = None,
    ) -> None:
        self._audit = audit
        self._members = members or EverySite()
        self._carrier = carrier
        self._journal = journal
        self._observer = observer
        self._deadline_s = deadline_s
        self._store_updates = store_updates
        self._decoders = Decoders(None)
        self._barred: set[str] = set()
        self.subjects_of: dict[SiteId, int] = {}

    def run(
        self,
        manifest: StepManifest,
        state: GlobalState,
        quorum: Quorum,
        fold: Fold | None,
        coding: UpdateCoding | None = None,
    ) -> StepResult:
        """Carry out one step up to its decision; :meth:`finish` then makes it durable.

        Args:
            manifest: what to ask, of whom.
            state: the array that goes with it; not read if the step is finished already.
            quorum: what must come together.
            fold: takes in each admitted array with its site and weight, in the order of the
                roster; None where the step has none.
            coding: how arrays are coded; None where they never are.

        Raises:
            IntegrityError: the journal has another manifest for this step: the run folder belongs
                to another federation file, seed, data or version.
        """
        result = StepResult(manifest)
        for record in self._journal.find("step_finished", step=manifest.step):
            self._check_same(record, manifest)
            self._restore(result, record)
            self._bar(result)
            return result
        self._open(manifest)
        self._observer.step_started(manifest)
        started = time.monotonic()
        self._decoders = Decoders(coding)
        order = None if fold is None else RosterOrder(manifest.sites, fold)
        answered = self._replay(result, order) | self._refuse_barred(result, order)
        asked = tuple(SiteId(site) for site in manifest.sites if site not in answered)
        question = Question(
            manifest.step,
            manifest.kind,
            manifest.round,
            asked,
            manifest.to_bytes(),
            state.values,
            self._decoders.carried(manifest.reply_layout),
            {SiteId(s): self._decoders.carried(manifest.reply_of(s)) for s in manifest.ranks},
        )
        result.bytes_down += len(asked) * (len(question.manifest) + state.values.nbytes)
        if asked:
            for answer in self._carrier.ask(question, self._deadline_s):
                self._take(result, answer, order)
                self._journal.settle()
        if order is not None:
            order.close()
        heard = set(result.contributions) | {site for site, _ in result.refused}
        result.missing = [site for site in manifest.sites if site not in heard]
        result.abandoned = not quorum.met(result)
        result.seconds = time.monotonic() - started
        self._bar(result)
        self._observer.step_ended(result)
        return result

    def asked_state(self, step: int) -> Digest | None:
        """Digest of the array that a finished step sent out; None if it is not finished."""
        for record in self._journal.find("step_finished", step=step):
            return Digest(str(record["state"]))
        return None

    def head_for(self, step: int) -> SignedHead | None:
        """The head that a step's manifest carries: that of its first asking, or today's."""
        for record in self._journal.find("step_started", step=step):
            head = record.get("head")
            return None if head is None else SignedHead.model_validate(head)
        return self._audit.head

    def finish(
        self,
        result: StepResult,
        produced: Digest | None = None,
        memory: Digest | None = None,
    ) -> None:
        """Record that a step counts (or was abandoned), with the stored objects it produced.

        Args:
            result: the step as :meth:`run` returned it.
            produced: the sum or the next global state.
            memory: what the aggregation rule remembers; None for nothing.
        """
        if result.recorded is not None:
            return
        self._audit.step_finished(result, produced)
        self._journal.append(
            "step_finished",
            step=result.manifest.step,
            manifest=result.manifest.digest(),
            abandoned=result.abandoned,
            sites=[
                [
                    site,
                    part.num_subjects,
                    part.num_examples,
                    part.body.model_dump(mode="json"),
                    part.seconds,
                ]
                for site, part in sorted(result.contributions.items())
            ],
            refused=[list(pair) for pair in sorted(result.refused)],
            missing=result.missing,
            late=result.late,
            bytes_down=result.bytes_down,
            bytes_up=result.bytes_up,
            seconds=result.seconds,
            state=result.manifest.state_sha256,
            produced=produced,
            memory=memory,
        )

    def _bar(self, result: StepResult) -> None:
        """Remember who runs another version: nobody asks it again in this run."""
        if result.manifest.kind == "describe":
            self._barred = {site for site, code in result.refused if code == OTHER_VERSION}

    def _refuse_barred(self, result: StepResult, order: RosterOrder | None) -> set[str]:
        """Count those who are not asked as refused: of another version, or let in no more."""
        barred = dict.fromkeys(self._barred, OTHER_VERSION)
        for site in result.manifest.sites:
            if site not in result.contributions and not self._members.is_member(SiteId(site)):
                barred[site] = REVOKED
        for site, code in sorted(barred.items()):
            result.refused.append((site, code))
            self._observer.answer_arrived(result.manifest.kind, site, code)
            if order is not None:
                order.skip(SiteId(site))
        return set(barred)

    def _open(self, manifest: StepManifest) -> None:
        for record in self._journal.find("step_started", step=manifest.step):
            self._check_same(record, manifest)
            return
        self._audit.step_asked(manifest)
        self._journal.append(
            "step_started",
            step=manifest.step,
            step_kind=manifest.kind,
            round=manifest.round,
            manifest=manifest.digest(),
            head=None if manifest.head is None else manifest.head.model_dump(mode="json"),
        )

    def _take(self, result: StepResult, answer: Answer, order: RosterOrder | None) -> None:
        manifest = result.manifest
        if answer.step != manifest.step:
            result.late.append(answer.site)
            self._journal.append("answer_late", step=answer.step, site=answer.site)
            return
        result.bytes_up += len(_bytes_of(answer.receipt)) + (
            0 if answer.update is None else answer.update.nbytes
        )
        try:
            admitted = self._admit(manifest, result, answer)
        except RefusedError as error:
            self._audit.answer_refused(manifest, answer.site, error.code)
            self._journal.append(
                "answer_refused", step=manifest.step, site=answer.site, code=error.code
            )
            result.refused.append((answer.site, error.code))
            self._observer.answer_arrived(manifest.kind, answer.site, error.code)
            if order is not None:
                order.skip(answer.site)
            return
        stored = self._record(manifest, admitted, answer.spooled)
        self._count(result, admitted.site, admitted.receipt, admitted.body)
        if order is not None and admitted.update is not None:
            layout = manifest.reply_of(admitted.site)
            reread = stored if answer.spooled is None else None  # a mapped array is on disk already
            at_once = order.is_next(admitted.site)
            fetch = self._fetch(admitted, reread, layout, at_once=at_once)
            order.put(admitted.site, fetch, admitted.receipt.num_subjects)
        self._observer.answer_arrived(manifest.kind, answer.site, None)

    def _admit(self, manifest: StepManifest, result: StepResult, answer: Answer) -> Admitted:
        if answer.failure is not None or answer.receipt is None:
            raise RefusedError("the site failed", code=answer.failure or "no_receipt")
        if not self._members.is_member(answer.site):
            raise RefusedError("the site is not let in any more", code=REVOKED)
        if answer.site in result.contributions or answer.site in dict(result.refused):
            raise RefusedError("a second answer", code="duplicate")
        return admit(
            manifest,
            answer.site,
            answer.receipt,
            answer.update,
            subjects_of=self.subjects_of,
            handed_over=answer.handed_over,
            digest=None if answer.spooled is None else answer.spooled.sha256,
            decoder=self._decoders.of(manifest.reply_of(answer.site)),
            key=self._members.key_of(answer.site),
        )

    def _record(
        self, manifest: StepManifest, admitted: Admitted, spooled: Spooled | None
    ) -> Digest | None:
        """Make the answer durable; the name of the stored array, if it was stored."""
        stored = None
        if admitted.coded is not None:
            if not self._store_updates:
                return None  # a record without its array would be of no use to a resumed run
            stored = self._keep(as_bytes(admitted.coded), spooled)
        head = admitted.receipt.head
        if head is not None:
            self._members.pin(admitted.site, head.key)
        digest = sha256_hex(_bytes_of(admitted.received))
        self._audit.answer_admitted(manifest, admitted.receipt, digest)
        self._journal.append(
            "answer_admitted",
            step=manifest.step,
            site=admitted.site,
            receipt=admitted.receipt.model_dump(mode="json"),
            receipt_sha256=digest,
            update=stored,
        )
        return stored

    def _keep(self, coded: memoryview, spooled: Spooled | None) -> Digest:
        """Make an array an object of the journal; the file that it came in becomes one by its name."""
        if spooled is None:
            return self._journal.store(coded)
        self._journal.adopt(spooled.sha256, spooled.path)
        return spooled.sha256

    def _fetch(
        self, admitted: Admitted, stored: Digest | None, layout: Layout, *, at_once: bool
    ) -> Fetch:
        """How to read an update when its turn comes: at once from memory, later from the disk.

        Args:
            admitted: the update.
            stored: the object to read it back from; None to use the array that is there.
            layout: of the values.
            at_once: its turn is now.
        """
        update, coded, decoder = admitted.update, admitted.coded, self._decoders.of(layout)
        assert update is not None
        assert coded is not None
        if at_once or (stored is None and decoder is None):
            return lambda: update
        if stored is None and decoder is not None:
            return lambda: decoder.decode(coded)
        return partial(self._stored, str(stored), layout)

    def _stored(self, stored: str, layout: Layout) -> Packed:
        """A stored update, decoded."""
        decoder = self._decoders.of(layout)
        if decoder is None:
            return load_packed(self._journal, stored, layout)
        return decoder.decode(load_packed(self._journal, stored, decoder.coded))

    def _count(self, result: StepResult, site: SiteId, receipt: Receipt, body: WireModel) -> None:
        self.subjects_of.setdefault(site, receipt.num_subjects)
        result.contributions[site] = Contribution(
            receipt.num_subjects,
            receipt.num_examples,
            body,
            {str(phase): seconds for phase, seconds in receipt.seconds.items()},
        )

    def _replay(self, result: StepResult, order: RosterOrder | None) -> set[str]:
        """Take in the answers to this step that an earlier process made durable.

        A site that was refused is asked again: the operator may have resumed because it is mended.
        """
        manifest = result.manifest
        layout = manifest.reply_layout
        answered: set[str] = set()
        for record in self._journal.find("answer_admitted", step=manifest.step):
            stored, site = record["update"], SiteId(str(record["site"]))
            if site in answered or (layout.num_values and stored is None):
                continue
            receipt = Receipt.model_validate(record["receipt"])
            body = BODIES[manifest.kind].model_validate(receipt.body)
            if stored is not None and order is not None:
                fetch = partial(self._stored, str(stored), manifest.reply_of(site))
                order.put(site, fetch, receipt.num_subjects)
            self._count(result, site, receipt, body)
            answered.add(site)
        return answered

    def _restore(self, result: StepResult, record: Record) -> None:
        data: dict[str, Any] = dict(record)
        body_type = BODIES[result.manifest.kind]
        for site, num_subjects, num_examples, body, seconds in data["sites"]:
            self.subjects_of.setdefault(SiteId(site), num_subjects)
            result.contributions[SiteId(site)] = Contribution(
                num_subjects, num_examples, body_type.model_validate(body), seconds
            )
        result.refused = [(site, code) for site, code in data["refused"]]
        result.missing, result.late = list(data["missing"]), list(data["late"])
        result.abandoned = data["abandoned"]
        result.bytes_down, result.bytes_up = data["bytes_down"], data["bytes_up"]
        result.seconds = data["seconds"]
        result.recorded = record

    @staticmethod
    def _check_same(record: Record, manifest: StepManifest) -> None:
        if record["manifest"] != manifest.digest():
            raise IntegrityError(
                f"step {manifest.step} of this run folder was asked differently: the federation "
                "file, the seed, the data or the version has changed; start a new run",
                code="journal_manifest",
            )


def _bytes_of(receipt: bytes | Receipt | None) -> bytes:
    return receipt.to_bytes() if isinstance(receipt, Receipt) else receipt or b""


def load_packed(journal: Journal, digest: str, layout: Layout) -> Packed:
    """A stored array, viewed as ``layout``."""
    return from_buffer(layout, journal.load(digest)).astype(np.dtype(layout.dtype), copy=False)
