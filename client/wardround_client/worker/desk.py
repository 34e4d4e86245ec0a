"""The worker's desk: questions come in, one is computed at a time, and each answer is kept.

The rules:

1. A question is taken only for a federation file that ``site.toml`` names, and only if it fits that
   file and its backbone; its array is not even received before that.
2. Questions are computed one after the other in the order in which they have arrived whole, whatever
   runs they belong to. At most two arrays are received or kept: one is computed on, one is next.
3. Work outlives whoever asked: if the connection is lost the answer is finished and kept, and the
   next one who asks the same question gets it, at once and whatever else is being computed.
4. What leaves is a stored answer that the site's control has let pass, durable before its first byte is
   released, and so is the entry in the audit log that says so.
5. A run that is stopped is stopped wherever its questions are: whoever waits is told at once, what is
   computed ends between two steps, and the same question may be asked anew.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final

from wardround_client.policy.control import SiteControl
from wardround_client.training.stopping import STOPPED, raise_if_stopped, stoppable, stopped_error
from wardround_client.worker.answers import Answers, Stored
from wardround_client.worker.caller import Caller, CallerLeftError, Places
from wardround_client.worker.error_feedback import ErrorFeedback, Remainders
from wardround_client.worker.federations import SiteFederations
from wardround_common.errors import WardroundError, WireError
from wardround_common.log import log_event
from wardround_common.spec.site import SiteSpec, resolve
from wardround_common.types import Digest
from wardround_common.wire.layout import as_bytes, from_buffer
from wardround_common.wire.step import StepManifest

MAX_ARRAYS: Final = 2

Receive = Callable[[], memoryview | None]


@dataclass(eq=False, slots=True)
class Task:
    """A question that was taken.

    Attributes:
        manifest: what is asked.
        array: the bytes of its state, until they are computed on; None for none.
        stop: set when nobody wants the answer.
        answer: what becomes of it.
        since: ``time.monotonic()`` when its computation began; 0 before.
    """

    manifest: StepManifest
    array: memoryview | None
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
        control: decides what may leave.

    Raises:
        ConfigError: a federation file is wrong, or does not have this site in its roster.
    """

    def __init__(self, site: SiteSpec, base: Path, control: SiteControl) -> None:
        self.site = site
        self._control = control
        self.federations = SiteFederations(site, base, self._feedback)
        self._answers = Answers(resolve(base, site.worker.state) / "runs")
        self._remainders: dict[str, Remainders] = {}
        self._bench = ThreadPoolExecutor(1, thread_name_prefix="bench")
        self._arrays = Places(MAX_ARRAYS)
        self._tasks: dict[Digest, Task] = {}
        self._callers: dict[Caller, str] = {}
        self._is_closing = False
        self._lock = threading.Lock()
        self.doing: Task | None = None
        self.num_answered = 0

    def warm_up(self) -> None:
        """Import what PyTorch's optimizers import when first made, for seconds that no stop ends."""
        self._bench.submit(import_module, "torch._dynamo")

    def answer(
        self, manifest: StepManifest, array_bytes: int, receive: Receive, caller: Caller
    ) -> Stored:
        """Answer a question; waits for its turn and its end.

        Args:
            manifest: what is asked.
            array_bytes: size of the array that is said to come with it.
            receive: called for the array when the question fits and there is room; not at all if
                it has been answered, or is being computed, already.
            caller: who waits.

        Raises:
            WardroundError: it cannot be answered; the code says why.
            CallerLeftError: the caller did not wait for the answer.
        """
        with self._waiting(caller, manifest.run), self._recorded(manifest):
            federation = self.federations.spec(manifest.spec_sha256)  # or it is not for this site
            if array_bytes != manifest.state_layout.num_bytes:
                raise WireError("the array is not the one the manifest names", code="state_bytes")
            self._control.admit(manifest, federation)
            stored = self._answers.find(manifest)
            if stored is None:
                self._check(manifest, caller)
                task = self._tasks.get(manifest.digest()) or self._taken(manifest, receive, caller)
                stored = caller.result_of(task.answer)
            return self._control.release(manifest, stored)

    def stop(self, run: str) -> bool:
        """Stop what is computed or waits for a run; whether anything was."""
        with self._lock:
            callers = [caller for caller, its in self._callers.items() if its == run]
            tasks = [task for task in self._tasks.values() if task.manifest.run == run]
            for caller in callers:
                caller.send_away(stopped_error)
            for task in tasks:
                self._stop(task)
        return bool(callers or tasks)

    def send_away(self) -> None:
        """The worker ends: whoever waits, or comes now, sees it gone, which is no failure."""
        with self._lock:
            self._is_closing = True
            for caller in self._callers:
                caller.leave()

    def close(self) -> None:
        """Stop what is being computed, and take nothing more."""
        self.send_away()
        with self._lock:
            for task in list(self._tasks.values()):
                self._stop(task)
        self._bench.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _waiting(self, caller: Caller, run: str) -> Iterator[None]:
        with self._lock:
            self._callers[caller] = run
            if self._is_closing:
                caller.leave()
        try:
            yield
        finally:
            with self._lock:
                del self._callers[caller]

    @contextmanager
    def _recorded(self, manifest: StepManifest) -> Iterator[None]:
        """Have the control write down what is refused; who left or was stopped was refused nothing."""
        try:
            yield
        except CallerLeftError:
            raise
        except Exception as error:
            if failure_code(error) != STOPPED:
                self._control.refused(manifest, failure_code(error))
            raise

    def _taken(self, manifest: StepManifest, receive: Receive, caller: Caller) -> Task:
        """Receive a question's array and put it into the queue."""
        self._arrays.take(caller)
        is_queued = False
        try:
            mine = Task(manifest, receive())
            with self._lock:
                caller.raise_if_gone()
                task = self._tasks.setdefault(manifest.digest(), mine)
                if task is mine:
                    self._bench.submit(self._compute, task)
                    is_queued = True
        finally:
            if not is_queued:  # refused, or asked twice at the same time
                self._arrays.give_back()
        return task

    def _stop(self, task: Task) -> None:
        """With the lock held."""
        task.stop.set()
        del self._tasks[task.manifest.digest()]
        if not task.since:  # its place in the queue is passed over
            task.array = None
            self._arrays.give_back()

    def _check(self, manifest: StepManifest, caller: Caller) -> None:
        """Refuse what does not fit; the model is built on the bench, when first asked for.

        Raises:
            WireError: the code says what does not fit.
            BackboneError, ConfigError: this site's own files are not in order.
        """
        worker = self.federations.made(manifest.spec_sha256) or caller.result_of(
            self._bench.submit(self.federations.worker, manifest.spec_sha256)
        )
        worker.check(manifest)

    def _compute(self, task: Task) -> None:
        """On the bench: one task, from its turn to its end."""
        with self._lock:
            if task.stop.is_set():
                return
            task.since, self.doing = time.monotonic(), task
        try:
            with stoppable(task.stop):
                stored = self._answers.find(task.manifest) or self._execute(task)
        except BaseException as error:  # noqa: BLE001  whoever waits is told
            self._done(task)
            task.answer.set_exception(error)
        else:
            self._done(task)
            task.answer.set_result(stored)

    def _done(self, task: Task) -> None:
        with self._lock:
            self.doing, task.array = None, None
            if not task.stop.is_set():
                del self._tasks[task.manifest.digest()]
        self._arrays.give_back()

    def _execute(self, task: Task) -> Stored:
        manifest, array = task.manifest, task.array
        state = None if array is None else from_buffer(manifest.state_layout, array)
        federation = self.federations.spec(manifest.spec_sha256)
        self._control.admit(manifest, federation)  # it may have waited for hours
        worker = self.federations.worker(manifest.spec_sha256)
        patients = worker.patients(manifest.kind)
        self._control.admit_patients(worker.num_subjects, patients)
        receipt, update = worker.execute(manifest, state)
        raise_if_stopped()
        leaving = self._control.clear(manifest, federation, receipt, update, patients)
        if manifest.run in self._remainders:
            self._remainders[manifest.run].make_durable()
        sent = None if leaving.array is None else as_bytes(leaving.array)
        stored = self._answers.keep(manifest, leaving.receipt, sent)
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
