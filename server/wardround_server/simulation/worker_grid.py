"""Flower's ``Grid`` over forked worker processes on one machine.

The rules:

1. The workers are forked once, after the sites have described themselves: backbone and data are in
   memory once, and each worker keeps what it computes from them for the rest of the run.
2. A site goes back to the worker that had it before; a worker that has nothing left takes over a
   site that waits for another one.
3. A reply is handed over in the order of the questions, whatever the order in which the workers
   end: what is folded and what is journalled is the same as with one process.
4. A worker gets ahead of its turn by a bounded amount of memory, but whoever's turn it is is never
   held up by that.
"""

import contextlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from flwr.app import Message, RecordDict

from wardround_common.errors import RoundError
from wardround_common.wire.flower import array_of, make_reply
from wardround_common.wire.layout import Layout, Packed
from wardround_server.simulation.failures import Failures
from wardround_server.simulation.local_grid import LocalGrid, SiteApp
from wardround_server.simulation.shared_memory import SharedBlock
from wardround_server.simulation.worker_process import SimulationEnd, WorkerEnd, share

_AHEAD_BYTES = 512 * 2**20
"""Replies of all workers together that may wait for their turn, beyond two for each worker."""


@dataclass(slots=True)
class _Worker:
    """A forked process, the question it works on, and its replies that wait for their turn."""

    process: BaseProcess
    end: SimulationEnd
    busy: Message | None = None
    num_ahead: int = 0


@dataclass(frozen=True, slots=True)
class _Reply:
    """A worker's reply, and the block of its array."""

    message: Message
    worker: _Worker
    block: int | None


class WorkerGrid(LocalGrid):
    """A grid whose sites compute in several processes.

    Args:
        app: the ClientApp, as for :class:`LocalGrid`.
        sites: the roster.
        num_workers: processes, at least 1; not more than there are sites are started.
        failures: learns what went wrong at sites.
        begin: called in each worker as it starts, with where it may put updates
            (:meth:`~wardround_server.simulation.worker_process.WorkerEnd.place`).
        alone: message types that this process answers itself.
        run_id: Flower's number of the run.
    """

    def __init__(
        self,
        app: SiteApp,
        sites: Sequence[str],
        *,
        num_workers: int,
        failures: Failures,
        begin: Callable[[Callable[[Layout], Packed]], None],
        alone: frozenset[str] = frozenset({"query.describe"}),
        run_id: int = 1,
    ) -> None:
        super().__init__(app, sites, run_id)
        self._num_workers = min(num_workers, len(sites))
        self._failures = failures
        self._begin = begin
        self._alone = alone
        self._workers: list[_Worker] = []
        self._had: dict[int, int] = {}  # node -> number of the worker that had it last
        self._open: deque[Message] = deque()  # in the order of the questions
        self._unsent: list[Message] = []
        self._replies: dict[str, _Reply] = {}
        self._lent: _Reply | None = None
        self._content: RecordDict | None = None
        self._question: SharedBlock | None = None

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.end.connection.close()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The reply to the oldest open question; its array is valid until the next call."""
        wanted = set(message_ids)
        self._take_back()
        if self._waiting and self._waiting[0].metadata.message_type in self._alone:
            return super().pull_messages(wanted)
        self._open.extend(self._waiting)
        self._unsent.extend(self._waiting)
        self._waiting.clear()
        if not self._open or self._open[0].metadata.message_id not in wanted:
            return []
        if not self._workers:
            self._fork()
        first = self._open.popleft().metadata.message_id
        self._send(first)
        while first not in self._replies:
            self._receive()
            self._send(first)
        self._lent = self._replies.pop(first)
        return [self._lent.message]

    def _take_back(self) -> None:
        """The reply handed over last has been used."""
        if self._lent is not None and self._lent.block is not None:
            self._lent.worker.end.free(self._lent.block)
            self._lent.worker.num_ahead -= 1
        self._lent = None

    def _fork(self) -> None:
        context = multiprocessing.get_context("fork")
        for _ in range(self._num_workers):
            pipe: Any = context.Pipe()  # type checkers name its ends differently
            ours, theirs = pipe
            not_theirs = [ours, *(worker.end.connection for worker in self._workers)]
            process = context.Process(
                target=self._work, args=(theirs, not_theirs), name="wardround worker", daemon=True
            )
            process.start()
            theirs.close()
            assert process.pid is not None
            self._workers.append(_Worker(process, SimulationEnd(ours, process.pid, self._failures)))

    def _work(self, connection: Connection, not_theirs: Sequence[Connection]) -> None:
        """What a worker does, from fork to end."""
        for other in not_theirs:
            other.close()  # else a worker would not notice that the simulation is gone
        self._workers.clear()
        self._failures.keep()
        end = WorkerEnd(connection, self._deliver, self._failures)
        self._begin(end.place)
        end.serve()

    def _send(self, first: str) -> None:
        """Give every idle worker a question, as far as replies may be ahead of their turn."""
        for number, worker in enumerate(self._workers):
            if worker.busy is not None or not self._unsent:
                continue
            message = self._next_for(number, first)
            if message is None:
                continue
            self._unsent.remove(message)
            self._had[message.metadata.dst_node_id] = number
            if message.content is not self._content:
                self._content = message.content
                self._question = share(message.content, self._question)
            with _alive():
                worker.end.ask(message, self._question)
            worker.busy = message

    def _next_for(self, number: int, first: str) -> Message | None:
        """A site that the worker had, else one that nobody had, else the last of another's.

        Args:
            number: the worker's.
            first: id of the question whose turn it is.
        """
        oldest = self._unsent[0]
        busy = any(worker.busy is not None for worker in self._workers)
        if busy and oldest.content is not self._content:
            return None  # the array of the question before is still read
        array = array_of(oldest.content)
        ahead = max(
            2, _AHEAD_BYTES // max(1, 0 if array is None else array.nbytes) // len(self._workers)
        )
        if self._workers[number].num_ahead >= ahead:
            return oldest if oldest.metadata.message_id == first else None
        for owner in (number, None):
            for message in self._unsent:
                if self._had.get(message.metadata.dst_node_id) == owner:
                    return message
        return self._unsent[-1]

    def _receive(self) -> None:
        """Wait for a worker, and keep its reply until its turn."""
        of = {w.end.connection: w for w in self._workers if w.busy is not None}
        for connection in wait(list(of)):
            worker = of[connection]  # type: ignore[index]
            message, worker.busy = worker.busy, None
            assert message is not None
            with _alive():
                content, block = worker.end.answer()
            worker.num_ahead += block is not None
            reply = _Reply(make_reply(message, content), worker, block)
            self._replies[message.metadata.message_id] = reply


@contextlib.contextmanager
def _alive() -> Iterator[None]:
    """A worker that is gone ends the simulation.

    Raises:
        RoundError: it is gone.
    """
    try:
        yield
    except (EOFError, OSError) as error:
        raise RoundError(
            "a worker process of the simulation has ended: it was killed, or memory ran out; go on "
            "with --resume, and with fewer --workers if memory is short",
            code="worker_ended",
        ) from error
