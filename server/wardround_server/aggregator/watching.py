"""Writes where a run stands, for ``wardround aggregator status`` and the metrics to read."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from wardround_common.log import log_event
from wardround_common.types import SiteId
from wardround_common.wire.step import StepManifest
from wardround_server.aggregator.records import Progress, RunRecord
from wardround_server.rounds.results import StepResult

Ways = Callable[[], Mapping[SiteId, str]]


class ProgressObserver:
    """An observer that keeps ``progress.json``; see :class:`~wardround_server.rounds.results.Observer`.

    Args:
        record: the run.
        num_rounds: that the federation asks for.
        sites: the roster.
        ways: how each site is asked now.
    """

    def __init__(
        self, record: RunRecord, num_rounds: int, sites: tuple[str, ...], ways: Ways
    ) -> None:
        self._record = record
        self._ways = ways
        attempt = record.attempt
        number = 1 if attempt is None else attempt.attempt
        self._progress = Progress(number, num_rounds=num_rounds, sites=sites)
        self._write()

    def step_started(self, manifest: StepManifest) -> None:
        """See ``Observer``."""
        self._progress = replace(
            self._progress,
            step=manifest.step,
            kind=manifest.kind,
            round=manifest.round,
            answered=(),
            refused={},
        )
        log_event("step_started", run=manifest.run, phase=manifest.kind, round=manifest.round)
        self._write()

    def answer_arrived(self, kind: str, site: str, refusal: str | None) -> None:
        """See ``Observer``."""
        progress = self._progress
        if refusal is None:
            progress = replace(progress, answered=(*progress.answered, site))
            log_event("answer_admitted", run=self._record.run, phase=kind, site=site)
        else:
            progress = replace(progress, refused={**progress.refused, site: refusal})
            log_event("answer_refused", run=self._record.run, phase=kind, site=site, code=refusal)
        self._progress = progress
        self._write()

    def step_ended(self, result: StepResult) -> None:
        """See ``Observer``."""
        before, kind = self._progress, result.manifest.kind
        phases = dict(before.phases)
        for part in result.contributions.values():
            for phase, seconds in part.seconds.items():
                phases[phase] = phases.get(phase, 0.0) + seconds
        self._progress = replace(
            before,
            bytes_down=before.bytes_down + result.bytes_down,
            bytes_up=before.bytes_up + result.bytes_up,
            seconds={**before.seconds, kind: before.seconds.get(kind, 0.0) + result.seconds},
            phases=phases,
        )
        log_event(
            "step_abandoned" if result.abandoned else "step_completed",
            run=result.manifest.run,
            phase=kind,
            round=result.manifest.round,
            num_sites=len(result.contributions),
            num_missing=len(result.missing),
            num_quarantined=len(result.refused),
            bytes_in=result.bytes_up,
            bytes_out=result.bytes_down,
            seconds=result.seconds,
        )
        self._write()

    def _write(self) -> None:
        ways = {str(site): way for site, way in self._ways().items()}
        self._progress = replace(self._progress, ways=ways, updated=time.time())
        with contextlib.suppress(OSError):  # it is for people; a full disk ends the run elsewhere
            self._record.write_progress(self._progress)
