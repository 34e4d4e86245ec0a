"""The two ends of the pipe between a simulation and one of its forked workers.

A question is a head (JSON), and where it is not the one before the last, its manifest and its
array; an answer is a head and a receipt. Arrays lie in shared memory and only their place is told.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from wardround_common.wire.flower import (
    HandedOver,
    array_of,
    failure_content,
    failure_of,
    json_of,
    to_content,
)
from wardround_common.wire.layout import Layout, Packed
from wardround_server.simulation.failures import Failures
from wardround_server.simulation.shared_memory import BlockPool, SharedBlock

Deliver = Callable[[Message], Message]
Head = dict[str, Any]


class WorkerEnd:
    """The worker's end: answers until the other end is closed.

    Args:
        connection: to the simulation.
        deliver: answers one message in this process.
        failures: what went wrong while it did.
    """

    def __init__(self, connection: Connection, deliver: Deliver, failures: Failures) -> None:
        self._connection = connection
        self._deliver = deliver
        self._failures = failures
        self._pool = BlockPool()
        self._placed: _Placed | None = None
        self._told: set[int] = set()
        self._question: SharedBlock | None = None
        self._content = RecordDict()

    def place(self, layout: Layout) -> Packed:
        """An array for an update, where the other end can read it: it need not be copied there.

        Args:
            layout: of at least one value.

        Returns:
            Undefined values; an answer that is this array is sent as it lies.
        """
        if self._placed is not None:
            self._pool.give_back(self._placed.number)
        self._placed = self._take(layout.num_bytes, layout.dtype, layout.num_values)
        return self._placed.array

    def serve(self) -> None:
        """Answer every question."""
        while True:
            try:
                head = json.loads(self._connection.recv_bytes())
            except EOFError:
                return
            for block in head["freed"]:
                self._pool.give_back(block)
            if head["asks_anew"]:
                self._content = self._receive(head)
            message = Message(
                self._content, head["node"], head["type"], ttl=head["ttl"], group_id=head["group"]
            )
            self._answer(self._deliver(message).content)

    def _receive(self, head: Head) -> RecordDict:
        manifest = self._connection.recv_bytes()
        array = head["array"]
        if array is None:
            return to_content(manifest, None)
        if array["new_bytes"]:
            self._question = SharedBlock.receive(self._connection, array["new_bytes"])
        assert self._question is not None
        return to_content(manifest, self._question.array(array["dtype"], array["size"]))

    def _answer(self, content: RecordDict) -> None:
        if isinstance(content, HandedOver):
            content = to_content(content.receipt.to_bytes(), content.array)
        failure, array = failure_of(content), array_of(content)
        placed = self._in_place(array if failure is None else None)
        head: Head = {"failure": failure, "failures": self._failures.take(), "array": None}
        if placed is not None:
            head["array"] = {
                "dtype": placed.array.dtype.name,
                "size": placed.array.size,
                "block": placed.number,
                "new_bytes": 0 if placed.number in self._told else placed.block.num_bytes,
            }
        self._connection.send_bytes(json.dumps(head).encode())
        if failure is None:
            self._connection.send_bytes(json_of(content))
        if placed is not None and placed.number not in self._told:
            placed.block.send(self._connection, os.getppid())
            self._told.add(placed.number)

    def _in_place(self, array: Packed | None) -> "_Placed | None":
        """The block that holds an answer's array, which is copied there if it lies elsewhere."""
        placed, self._placed = self._placed, None
        if placed is not None and placed.array is array:
            return placed
        if placed is not None:
            self._pool.give_back(placed.number)
        if array is None:
            return None
        placed = self._take(array.nbytes, array.dtype.name, array.size)
        np.copyto(placed.array, array)
        return placed

    def _take(self, num_bytes: int, dtype: str, size: int) -> "_Placed":
        number, block = self._pool.take(num_bytes)
        return _Placed(number, block, block.array(dtype, size))


@dataclass(frozen=True, slots=True)
class _Placed:
    """An array in a block of shared memory."""

    number: int
    block: SharedBlock
    array: Packed


class SimulationEnd:
    """The simulation's end.

    Args:
        connection: to the worker.
        pid: the worker's process.
        failures: learns what went wrong there.
    """

    def __init__(self, connection: Connection, pid: int, failures: Failures) -> None:
        self.connection = connection
        self._pid = pid
        self._failures = failures
        self._content: RecordDict | None = None
        self._question: SharedBlock | None = None
        self._blocks: dict[int, SharedBlock] = {}
        self._freed: list[int] = []

    def ask(self, message: Message, shared: SharedBlock | None) -> None:
        """Send a question.

        Args:
            message: the question.
            shared: the block that holds its array, if it has one; the same for all workers.
        """
        content, metadata = message.content, message.metadata
        asks_anew = content is not self._content
        array = array_of(content)
        place = None
        if asks_anew and array is not None and shared is not None:
            new_bytes = 0 if shared is self._question else shared.num_bytes
            place = {"dtype": array.dtype.name, "size": array.size, "new_bytes": new_bytes}
        head: Head = {
            "node": metadata.dst_node_id,
            "type": metadata.message_type,
            "group": metadata.group_id,
            "ttl": metadata.ttl,
            "freed": self._freed,
            "asks_anew": asks_anew,
            "array": place,
        }
        self.connection.send_bytes(json.dumps(head).encode())
        self._freed = []
        if asks_anew:
            self.connection.send_bytes(json_of(content))
            self._content = content
        if place is not None and place["new_bytes"] and shared is not None:
            shared.send(self.connection, self._pid)
            self._question = shared

    def answer(self) -> tuple[RecordDict, int | None]:
        """Receive an answer.

        Returns:
            Its content, and the number of the block that holds its array, for :meth:`free`.
        """
        head = json.loads(self.connection.recv_bytes())
        for told in head["failures"]:
            self._failures.relay(tuple(told))
        if head["failure"] is not None:
            return failure_content(head["failure"]), None
        receipt, array = self.connection.recv_bytes(), head["array"]
        if array is None:
            return to_content(receipt, None), None
        number: int = array["block"]
        if array["new_bytes"]:
            self._blocks[number] = SharedBlock.receive(self.connection, array["new_bytes"])
        values = self._blocks[number].array(array["dtype"], array["size"])
        return to_content(receipt, values), number

    def free(self, block: int) -> None:
        """Nobody reads a block any more."""
        self._freed.append(block)


def share(content: RecordDict, block: SharedBlock | None) -> SharedBlock | None:
    """Write a question's array where all workers can read it.

    Args:
        content: the question.
        block: the block of the question before, which nobody reads any more; used again if the
            array fits.

    Returns:
        The block with the array; the given one where the question has none.
    """
    array: Packed | None = array_of(content)
    if array is None:
        return block
    if block is None or block.num_bytes < array.nbytes:
        block = SharedBlock(array.nbytes)
    np.copyto(block.array(array.dtype.name, array.size), array)
    return block
