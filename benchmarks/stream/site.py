"""One site in a process of its own: the real node, and a worker that has its answer ready.

Reads one JSON line with where to connect and as whom; ends when its run is over.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from wardround_client.airlock.airlock_pb2 import WorkerStatus
from wardround_client.airlock.client import AirlockAnswer
from wardround_client.node.stream import StreamSessions
from wardround_common.rpc.frames import pieces
from wardround_common.stream.limits import Identity
from wardround_common.types import Digest, sha256_hex
from wardround_common.wire.layout import as_bytes
from wardround_common.wire.step import Receipt, parse_manifest

NUM_SUBJECTS = 10


def update_of(site: str, num_values: int) -> np.ndarray:
    """The update that a site sends in every round, float32 [num_values]."""
    seed = int(sha256_hex(site.encode())[:8], 16)
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.normal(scale=1e-3, size=num_values).astype(np.float32)


class ReadyWorker:
    """Takes in a question's array without looking at it and answers with an update made before."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._updates: dict[int, tuple[memoryview, Digest]] = {}
        self.ended = False

    def execute(
        self,
        document: bytes,
        chunks: Iterable[bytes | memoryview] = (),
        array_bytes: int = 0,
        *,
        deadline_s: float,
    ) -> AirlockAnswer:
        """One answer."""
        del deadline_s
        if sum(memoryview(chunk).nbytes for chunk in chunks) != array_bytes:
            return AirlockAnswer(b"", "frames_bytes", 0, iter(()))
        manifest = parse_manifest(document)
        update, digest = self._update(manifest.reply_layout.num_values)
        receipt = Receipt(
            run=manifest.run,
            step=manifest.step,
            kind=manifest.kind,
            round=manifest.round,
            manifest_sha256=manifest.digest(),
            site=self._site,
            tensors=manifest.reply,
            update_sha256=digest,
            num_subjects=NUM_SUBJECTS,
            num_examples=NUM_SUBJECTS,
            body={"loss": 0.5, "num_steps": 1},
        )
        return AirlockAnswer(receipt.to_bytes(), "", update.nbytes, _bytes(update))

    def status(self) -> WorkerStatus:
        """It is there."""
        return WorkerStatus(site=self._site)

    def stop(self, run: str) -> bool:
        """The run is over."""
        del run
        self.ended = True
        return False

    def _update(self, num_values: int) -> tuple[memoryview, Digest]:
        if num_values not in self._updates:
            data = as_bytes(update_of(self._site, num_values))
            self._updates[num_values] = data, sha256_hex(data)
        return self._updates[num_values]


def _bytes(update: memoryview) -> Iterator[bytes]:
    return (bytes(piece) for piece in pieces(update))


def main() -> None:
    """Serve one site until its run is over."""
    wanted: dict[str, Any] = json.loads(sys.stdin.readline())
    identity = Identity(*(wanted[key].encode() for key in ("certificate", "key", "authority")))
    worker = ReadyWorker(wanted["site"])
    sessions = StreamSessions(wanted["site"], identity, worker)
    sessions.on_session(wanted["invite"].encode())
    while not worker.ended:
        time.sleep(0.1)
    sessions.close()


if __name__ == "__main__":
    main()
