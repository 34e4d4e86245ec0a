"""Which runs go on now: begins those that were asked for, and again those whose ServerApp died.

The rules, for each run without an outcome, oldest first:

1. At most so many runs go on at a time; the others wait for their turn.
2. A run goes on while a ServerApp holds its folder, or Flower has not ended the run that was started
   for it and a ServerApp may still come. Otherwise a new Flower run is started for the same folder.
   The journal makes the result the same bytes.
3. A ServerApp that died is noticed by the folder that nobody holds: Flower itself would take a
   minute.
4. An attempt that added nothing to the journal is followed by a longer pause, and a run whose last
   attempts all added nothing has failed.
5. A run that has an outcome is stopped in Flower, so that its sites stop computing for it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from wardround_common.log import log_event
from wardround_server.aggregator.flower.control import Control, FlowerRun
from wardround_server.aggregator.records import FlowerAttempt, Outcome, RunRecord

_PAUSES_S: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
MAX_WITHOUT_PROGRESS: Final = len(_PAUSES_S)
_ARRIVES_WITHIN_S: Final = 20.0
"""A ServerApp holds the folder so long after Flower began its run, or it died on its way."""


@dataclass(slots=True)
class _Watched:
    """What is remembered of a run between two looks.

    Attributes:
        held: a ServerApp of this attempt held the folder.
        begun: when Flower was first seen to have begun the attempt.
        due: not before this time.
    """

    run_id: int
    held: bool = False
    begun: float | None = None
    due: float = 0.0


class Dispatcher:
    """Keeps runs going.

    Args:
        control: the SuperLink.
        at_once: runs that go on at the same time.
        clock: seconds.
    """

    def __init__(
        self, control: Control, at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._control = control
        self._at_once = at_once
        self._clock = clock
        self._watched: dict[str, _Watched] = {}
        self._ended: set[str] = set()

    def look(self, runs: Sequence[RunRecord]) -> None:
        """Do for each run what is to be done now.

        Args:
            runs: all, oldest first.

        Raises:
            ControlUnavailable: the SuperLink does not answer; look again later.
        """
        going = 0
        for record in runs:
            if record.outcome is not None:
                self._see_ended(record)
            elif going < self._at_once:
                self._ended.discard(record.run)
                going += 1
                self._see(record)

    def _see_ended(self, record: RunRecord) -> None:
        if record.run in self._ended:
            return
        attempt = record.attempt
        if attempt is not None and attempt.run_id and not record.is_driven:
            self._control.stop_run(attempt.run_id)
        elif attempt is not None and attempt.run_id and _is_stopped(record):
            self._control.stop_run(attempt.run_id)
            return  # its ServerApp is still there: look once more
        elif record.is_driven:
            return
        self._watched.pop(record.run, None)
        self._ended.add(record.run)

    def _see(self, record: RunRecord) -> None:
        attempt = record.attempt
        if attempt is None or not attempt.run_id:
            self._start(record, attempt)
            return
        watched = self._watched.get(record.run)
        if watched is None or watched.run_id != attempt.run_id:
            watched = self._watched[record.run] = _Watched(attempt.run_id)
        if record.is_driven:
            watched.held = True
        elif self._is_over(watched):
            self._start_again(record, attempt, watched)

    def _is_over(self, watched: _Watched) -> bool:
        """Whether no ServerApp will come for the attempt any more."""
        state = self._control.runs([watched.run_id])[watched.run_id]
        if state in {FlowerRun.FINISHED, FlowerRun.UNKNOWN} or watched.held:
            return True
        if state is FlowerRun.RUNNING and watched.begun is None:
            watched.begun = self._clock()
        return watched.begun is not None and self._clock() - watched.begun > _ARRIVES_WITHIN_S

    def _start_again(self, record: RunRecord, attempt: FlowerAttempt, watched: _Watched) -> None:
        if record.outcome is not None or record.is_driven:
            return  # it ended, or began, between two looks
        now = self._clock()
        without = 0 if record.num_records > attempt.num_records else attempt.without_progress + 1
        if without >= MAX_WITHOUT_PROGRESS:
            self._give_up(record, attempt)
            return
        if not watched.due:
            self._control.stop_run(attempt.run_id)
            watched.due = now + _PAUSES_S[without]
            log_event("run_lost", run=record.run, attempt=attempt.attempt)
        if now >= watched.due:
            self._start(record, attempt, without)

    def _start(
        self, record: RunRecord, before: FlowerAttempt | None, without_progress: int = 0
    ) -> None:
        number = 1 if before is None else before.attempt + 1
        run_id = self._control.start_run(record.run)
        record.write_attempt(
            FlowerAttempt(run_id, number, time.time(), record.num_records, without_progress)
        )
        log_event("run_started", run=record.run, attempt=number)

    def _give_up(self, record: RunRecord, attempt: FlowerAttempt) -> None:
        self._control.stop_run(attempt.run_id)
        message = (
            f"{MAX_WITHOUT_PROGRESS} attempts in a row ended without progress; "
            f"{record.failure} says why, if it is there. When the cause is "
            f"mended: wardround aggregator resume DIR {record.run}"
        )
        record.end(Outcome("failed", "no_progress", message, ended=time.time()))
        log_event("run_failed", run=record.run, code="no_progress")


def _is_stopped(record: RunRecord) -> bool:
    outcome = record.outcome
    return outcome is not None and outcome.state == "stopped"
