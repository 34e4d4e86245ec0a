"""The process that keeps an aggregator up: its programs, its nodes, its runs.

1. One a folder: a lock says so.
2. Whichever program dies, at whatever moment, is started again within seconds. The SuperLink keeps
   what it knows in its database; a run whose ServerApp died goes on from its journal.
3. When this process dies, its programs die with it; started again, it goes on with every run that
   has no outcome.
4. At SIGTERM or SIGINT, ServerApps stop first, then the front door, then the SuperLink.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from wardround_common.errors import ConfigError, WardroundError
from wardround_common.log import log_event, set_log_stream
from wardround_common.spec.aggregator import AggregatorSpec
from wardround_server.aggregator.dispatch import Dispatcher
from wardround_server.aggregator.enrolment import serve_enrolment
from wardround_server.aggregator.flower.control import Control, ControlUnavailable, SuperLinkControl
from wardround_server.aggregator.flower.programs import (
    SuperLinkFiles,
    environment,
    superexec_command,
    superlink_command,
)
from wardround_server.aggregator.folder import AggregatorFolder, held, key_beside
from wardround_server.aggregator.process import KeptProcess
from wardround_server.aggregator.records import all_runs
from wardround_server.aggregator.roster import NodeRoster
from wardround_server.aggregator.setup import renew_server_certificate
from wardround_server.aggregator.sites import SiteRegister
from wardround_server.aggregator.status import SiteState, write_status

FrontDoorKind = Literal["none", "nginx"]
_TICK_S: Final = 0.25
_NODES_EVERY_S: Final = 1.0
_HUNG_AFTER_S: Final = 60.0
_GRACE_S: Final = 10.0
_DAY_S: Final = 86_400.0


def run_aggregator(folder: AggregatorFolder, front_door: FrontDoorKind | None) -> None:
    """Keep an aggregator up until SIGTERM or SIGINT.

    Args:
        folder: the aggregator's.
        front_door: instead of the file's.

    Raises:
        ConfigError: the folder is none, its file is wrong, or it is up already.
    """
    ended = _signals()
    set_log_stream(sys.stderr)
    spec = folder.load()
    if front_door is not None:
        changed = spec.front_door.model_copy(update={"kind": front_door})
        spec = spec.model_copy(update={"front_door": changed})
    running = ConfigError(f"{folder.path}: this aggregator is up already", code="aggregator_up")
    with held(folder.up_lock, running):
        if renew_server_certificate(folder, spec):
            log_event("certificate_renewed")
        with _supervised(folder, spec) as supervisor:
            log_event("aggregator_started")
            while not ended.wait(_TICK_S):
                supervisor.tick()
    log_event("aggregator_ended")


class Supervisor:
    """Looks after everything, again and again.

    Args:
        folder: the aggregator's.
        control: the SuperLink's Control API.
        superlink: the SuperLink.
        others: started when the SuperLink answers for the first time; ended in this order.
        at_once: runs that go on at the same time.
        door: reads the revocation list again when told; None without one.
        clock: seconds.
    """

    def __init__(
        self,
        folder: AggregatorFolder,
        control: Control,
        superlink: KeptProcess,
        others: Sequence[KeptProcess],
        *,
        at_once: int,
        door: KeptProcess | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._control = control
        self._superlink = superlink
        self._others = tuple(others)
        self._clock = clock
        self._roster = NodeRoster(control)
        self._dispatcher = Dispatcher(control, at_once, clock)
        self._answered_at = clock()
        self._was_healthy = False
        self._nodes_due = 0.0
        self._sites: list[SiteState] = []
        self._door = door
        self._revocations = Revocations(folder)

    def tick(self) -> None:
        """Do what is to be done now."""
        self._superlink.keep()
        if self._revocations.have_changed() and self._door is not None:
            self._door.tell(signal.SIGHUP)
        healthy = self._superlink.is_running and self._control.is_healthy()
        self._note_health(healthy=healthy)
        if self._was_healthy:
            for process in self._others:
                process.keep()
        if healthy:
            try:
                self._look()
            except ControlUnavailable:
                healthy = False
            except WardroundError as error:
                log_event("look_failed", code=error.code)
        self._write(healthy=healthy)

    def end(self) -> None:
        """End all programs."""
        for process in (*self._others, self._superlink):
            process.end(_GRACE_S)
        self._write(healthy=False)

    def _note_health(self, *, healthy: bool) -> None:
        now = self._clock()
        if healthy:
            self._answered_at, self._was_healthy = now, True
        elif now - self._answered_at > _HUNG_AFTER_S:
            log_event("process_hung", process=self._superlink.name)
            self._superlink.restart()
            self._answered_at = now

    def _look(self) -> None:
        now = self._clock()
        if now >= self._nodes_due:
            self._nodes_due = now + _NODES_EVERY_S
            found = self._roster.match(SiteRegister(self._folder).all())
            self._sites = [
                SiteState(name, True, node.online, node.since) if node else SiteState(name)
                for name, node in sorted(found.items())
            ]
        self._dispatcher.look(all_runs(self._folder))

    def _write(self, *, healthy: bool) -> None:
        kept = (self._superlink, *self._others)
        processes = {process.name: process.is_running for process in kept}
        processes[self._superlink.name] = healthy
        restarts = {process.name: max(0, process.num_starts - 1) for process in kept}
        write_status(self._folder, processes, restarts, self._sites)


class Revocations:
    """The revocation list: written anew each day, and watched.

    Args:
        folder: the aggregator's.
        clock: seconds.
    """

    def __init__(
        self, folder: AggregatorFolder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = folder.revocations
        self._register = SiteRegister(folder)
        self._clock = clock
        self._due = clock() + _DAY_S
        self._register.write_revocations()
        self._seen = self._path.stat().st_mtime_ns

    def have_changed(self) -> bool:
        """Whether the list is another one than when this was asked last."""
        if self._clock() >= self._due:
            self._due = self._clock() + _DAY_S
            self._register.write_revocations()
        now = self._path.stat().st_mtime_ns
        was, self._seen = self._seen, now
        return now != was


@contextmanager
def _supervised(folder: AggregatorFolder, spec: AggregatorSpec) -> Iterator[Supervisor]:
    """All programs of an aggregator, and their end."""
    port = spec.superlink_port
    files = SuperLinkFiles(
        folder.certificate,
        key_beside(folder.certificate),
        folder.authority,
        folder.superexec_secret,
        folder.state / "superlink.sqlite",
    )
    around = environment(folder.path, folder.state / "flwr")
    superlink = KeptProcess(
        "superlink",
        lambda: superlink_command(port, files),
        around,
        folder.logs / "superlink.log",
    )
    superexec = KeptProcess(
        "superexec",
        lambda: superexec_command(port, files),
        around,
        folder.logs / "superexec.log",
    )
    door = _front_door(folder, spec)
    others = [superexec] if door is None else [superexec, door]
    control = SuperLinkControl(port, folder.authority)
    supervisor = Supervisor(
        folder, control, superlink, others, at_once=spec.runs_at_once, door=door
    )
    stop_enrolment = serve_enrolment(folder, spec.enrolment_port)
    try:
        if spec.metrics is not None:
            from wardround_server.aggregator.metrics import serve_metrics

            serve_metrics(folder, spec.metrics)
        yield supervisor
    finally:
        stop_enrolment()
        supervisor.end()
        control.close()


def _front_door(folder: AggregatorFolder, spec: AggregatorSpec) -> KeptProcess | None:
    if spec.front_door.kind == "none":
        return None
    from wardround_server.aggregator.front_door import front_door

    return front_door(folder, spec)


def _signals() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    return ended
