"""The worker's desk: questions come in, one is computed at a time, and each answer is kept.

The rules:

1. A question is taken only for a federation file that ``site.toml`` names, and only if it fits that
   file and its backbone; its array is not even received before that.
2. Questions are computed one after the other in the order in which they have arrived whole, whatever
   runs they belong to. At most two arrays are received or kept: one is computed on, one is next.
3. Work outlives whoever asked: if the connection is lost the answer is finished and kept, and the
   next one who asks the same question gets it.
4. What leaves is a stored answer, durable before its first byte is released.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wardround_client.training.stopping import raise_if_stopped, stoppable
from wardround_client.worker.answers import Answers, Stored
from wardround_client.worker.caller import Caller, Places
from wardround_client.worker.error_feedback import ErrorFeedback, Remainders
from wardround_client.worker.federations import SiteFederations
from wardround_common.errors import WardroundError
from wardround_common.log import log_event
from wardround_common.spec.site import SiteSpec, resolve
from wardround_common.types import Digest
from wardround_common.wire.layout import as_bytes, from_buffer
from wardround_common.wire.step import StepManifest

MAX_ARRAYS: Final = 2


@dataclass(eq=False, slots=True)
class Task:
    """A question that was taken.

    Attributes:
        manifest: what is asked.
        stop: set when nobody wants the answer.
        answer: what becomes of it.
        since: ``time.monotonic()`` when its computation began.
    """

    manifest: StepManifest
    stop: threading.Event = field(default_factory=threading.Event)
    answer: Future[Stored] = field(default_factory=Future)
    since: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it has been computed."""
        return time.monotonic() - self.since


class SiteDesk:
    """Answers for one site, over all its federations and runs.

    Args:
        site: the site file.
        base: its folder.

    Raises:
        ConfigError: a federation file is wrong, or does not have this site in its roster.
    """

    def __init__(self, site: SiteSpec, base: Path) -> None:
        self.site = site
        self.federations = SiteFederations(site, base, self._feedback)
        self._answers = Answers(resolve(base, site.worker.state) / "runs")
        self._remainders: dict[str, Remainders] = {}
        self._bench = ThreadPoolExecutor(1, thread_name_prefix="bench")
        self._arrays = Places(MAX_ARRAYS)
        self._tasks: dict[Digest, Task] = {}
        self._lock = threading.Lock()
        self.doing: Task | None = None
        self.num_answered = 0

    def check(self, manifest: StepManifest, caller: Caller) -> None:
        """Refuse a question that is not for this site; builds the model when first asked.

        Raises:
            WireError: the code says what does not fit.
            BackboneError, ConfigError: this site's own files are not in order.
            CallerLeftError: its turn came too late.
        """
        caller.result_of(self._bench.submit(self._check, manifest))

    def stored(self, manifest: StepManifest) -> Stored | None:
        """The answer that was given to this question before; None if it was not.

        Raises:
            WireError, IntegrityError: see :meth:`Answers.find`.
        """
        return self._answers.find(manifest)

    def answer(
        self, manifest: StepManifest, receive: Callable[[], memoryview | None], caller: Caller
    ) -> Stored:
        """Answer a question that passed :meth:`check`; waits for its turn and its end.

        Args:
            manifest: what is asked.
            receive: called for the bytes of the manifest's state when there is room for them, and
                not at all if the same question is being computed already.
            caller: who waits.

        Raises:
            WardroundError: it cannot be answered; the code says why.
        """
        task = self._tasks.get(manifest.digest()) or self._taken(manifest, receive, caller)
        return caller.result_of(task.answer)

    def stop(self, run: str) -> bool:
        """Stop what is computed or waits for a run, between two steps; whether anything was."""
        with self._lock:
            tasks = [task for task in self._tasks.values() if task.manifest.run == run]
        for task in tasks:
            task.stop.set()
        return bool(tasks)

    def close(self) -> None:
        """Stop what is being computed, and take nothing more."""
        with self._lock:
            tasks = list(self._tasks.values())
        for task in tasks:
            task.stop.set()
        self._bench.shutdown(wait=True, cancel_futures=True)

    def _taken(
        self, manifest: StepManifest, receive: Callable[[], memoryview | None], caller: Caller
    ) -> Task:
        """Receive a question's array and put it into the queue."""
        self._arrays.take(caller)
        task = mine = Task(manifest)
        try:
            array = receive()
            with self._lock:
                task = self._tasks.setdefault(manifest.digest(), mine)
                if task is mine:
                    self._bench.submit(self._compute, task, array)
        except BaseException:
            self._arrays.give_back()
            raise
        if task is not mine:  # it was asked twice at the same time
            self._arrays.give_back()
        return task

    def _check(self, manifest: StepManifest) -> None:
        self.federations.worker(manifest.spec_sha256).check(manifest)

    def _compute(self, task: Task, array: memoryview | None) -> None:
        """On the bench: one task, from its turn to its end."""
        task.since, self.doing = time.monotonic(), task
        try:
            with stoppable(task.stop):
                stored = self._answers.find(task.manifest) or self._execute(task, array)
        except BaseException as error:  # noqa: BLE001  whoever waits is told
            self._done(task)
            task.answer.set_exception(error)
        else:
            self._done(task)
            task.answer.set_result(stored)

    def _done(self, task: Task) -> None:
        self.doing = None
        with self._lock:
            self._tasks.pop(task.manifest.digest(), None)
        self._arrays.give_back()

    def _execute(self, task: Task, array: memoryview | None) -> Stored:
        raise_if_stopped()
        manifest = task.manifest
        state = None if array is None else from_buffer(manifest.state_layout, array)
        worker = self.federations.worker(manifest.spec_sha256)
        receipt, update = worker.execute(manifest, state)
        if manifest.run in self._remainders:
            self._remainders[manifest.run].make_durable()
        sent = None if update is None else as_bytes(update)
        stored = self._answers.keep(manifest, receipt.to_bytes(), sent)
        self.num_answered += 1
        log_event(
            "step_answered",
            run=manifest.run,
            phase=manifest.kind,
            round=manifest.round,
            bytes_out=len(stored.receipt) + stored.array_bytes,
            seconds=task.seconds,
        )
        return stored

    def _feedback(self, run: str) -> ErrorFeedback:
        """Kept in the run's folder, and forgotten with it."""
        folder = self._answers.open_run(run)
        if run not in self._remainders:
            there = {name: kept for name, kept in self._remainders.items() if kept.exists}
            self._remainders = there | {run: Remainders(folder / "remainders")}
        return self._remainders[run].of(self.site.name)


def failure_code(error: BaseException) -> str:
    """What may be said of a failure: its code, never its text."""
    return error.code if isinstance(error, WardroundError) else "internal_error"
