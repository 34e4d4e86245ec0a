"""The Merkle tree over a log's entries, as in RFC 6962, section 2.1.

A leaf's hash is SHA-256 of a zero byte and the entry, a node's that of a one byte and its two children.
The root of n entries names them all and their order. What is kept is one hash for each one of the
binary digits of n, so that a root costs log2(n) hashes however long the log is.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

EMPTY_ROOT: Final = sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry, 32 bytes."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees, 32 bytes."""
    return sha256(b"\x01" + left + right).digest()


class Tree:
    """The tree of all entries so far.

    Attributes:
        size: number of entries.
    """

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []  # of full subtrees, the largest first

    @classmethod
    def of(cls, size: int, subtrees: Sequence[bytes]) -> "Tree":
        """The tree of entries that are not there any more.

        Args:
            size: their number.
            subtrees: see :attr:`subtrees`.

        Raises:
            ValueError: there are not as many as that size has.
        """
        if size < 0 or len(subtrees) != size.bit_count():
            raise ValueError(f"a tree of {size} entries has {size.bit_count()} full subtrees")
        tree = cls()
        tree.size, tree._full = size, list(subtrees)
        return tree

    @property
    def subtrees(self) -> tuple[bytes, ...]:
        """The hashes of its full subtrees, the largest first, 32 bytes each."""
        return tuple(self._full)

    def add(self, entry: bytes) -> None:
        """One entry more."""
        new = leaf_hash(entry)
        merged = self.size
        while merged & 1:
            new = node_hash(self._full.pop(), new)
            merged >>= 1
        self._full.append(new)
        self.size += 1

    @property
    def root(self) -> bytes:
        """The root hash, 32 bytes; :data:`EMPTY_ROOT` of no entry."""
        if not self._full:
            return EMPTY_ROOT
        *rest, root = self._full
        for left in reversed(rest):
            root = node_hash(left, root)
        return root
