"""The question in hand, on disk: a node that is killed and comes back answers it all the same.

Flower hands a message to a node once. What makes that enough:

1. The message's head is written as soon as it was handed over; its parts before they are confirmed,
   since Flower deletes them then.
2. A node that finds a question in hand when it starts answers it before it asks for another one. It
   keeps its number and its lease, so that nobody believes the site to be gone.
3. Parts are named by their SHA-256 and checked against it when they are read back; what is damaged
   is fetched again. The files outlive the process, not the machine: a machine takes longer to start
   than the lease lasts, and then the aggregator asks again.

The folder holds the federation's model in training, and no data of the site.
"""

import contextlib
import os
from pathlib import Path

from wardround_common.types import sha256_hex

_NODE, _HEAD = "node-id", "head"


class InHand:
    """The folder of one node.

    Args:
        folder: made if absent, for its owner alone; one process at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = folder / "question"
        self._parts.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def node_id(self) -> int:
        """Flower's number of this node in its last life; 0 if there was none."""
        try:
            return int((self._folder / _NODE).read_text())
        except (OSError, ValueError):
            return 0

    @node_id.setter
    def node_id(self, value: int) -> None:
        _write(self._folder / _NODE, str(value).encode())

    @property
    def head(self) -> bytes:
        """The question's head; empty if there is no question in hand."""
        try:
            return (self._parts / _HEAD).read_bytes()
        except FileNotFoundError:
            return b""

    def take(self, head: bytes) -> None:
        """Take a question."""
        _write(self._parts / _HEAD, head)

    def part(self, name: str) -> bytes | None:
        """A part of it; None if it is not here whole.

        Args:
            name: its SHA-256.
        """
        try:
            content = (self._parts / name).read_bytes()
        except FileNotFoundError:
            return None
        return content if sha256_hex(content) == name else None

    def add(self, name: str, content: bytes) -> None:
        """Keep a part."""
        _write(self._parts / name, content)

    def answered(self) -> None:
        """The question was answered, or nobody waits for the answer: forget it, its head first."""
        (self._parts / _HEAD).unlink(missing_ok=True)
        for path in self._parts.iterdir():
            with contextlib.suppress(OSError):
                path.unlink()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, as far as a killed process goes."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)  # noqa: PTH105  one name for the crash tests to hook
