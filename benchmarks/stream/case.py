"""One number of sites and size of update, measured; prints one JSON object.

This process is the aggregator: journal, admission, aggregation and carrier are the ones of a run. The
sites are processes of their own. Memory is the largest resident set (``VmHWM``, reset through
``clear_refs``) above what was resident with all sessions open, before the model was made.
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import process_tree
from benchmarks.stream.site import update_of
from tests.pki import Authority
from wardround_common.spec.exchange import Fp32Update
from wardround_common.types import Digest, SiteId, TensorSpec
from wardround_common.wire.layout import Layout, as_bytes
from wardround_common.wire.session import SessionInvite
from wardround_common.wire.step import StepManifest, layout_to_wire
from wardround_server.aggregation.fedavg import FedAvg
from wardround_server.progress import QuietObserver
from wardround_server.rounds.carrier import Answer
from wardround_server.rounds.journal import Journal
from wardround_server.rounds.results import Quorum
from wardround_server.rounds.state import GlobalState, state_of
from wardround_server.rounds.steps import StepRunner
from wardround_server.stream.carrier import Patience, StreamCarrier
from wardround_server.stream.server import StreamServer

RUN = "0123456789abcdef"
OPEN_S = 120.0
NO_ARRAY = np.zeros(0, dtype=np.float32)


class Nobody:
    """No other way: a site that needed one would fail the measurement."""

    def send(self, question: Any, sites: Any, deadline_s: float) -> tuple[Answer, ...]:
        """Nobody may need this."""
        del question, deadline_s
        raise RuntimeError(f"not by stream: {sites}")

    def poll(self) -> tuple[Answer, ...]:
        """Nothing."""
        return ()


@dataclass
class Federation:
    """Sites, their sessions and a journal."""

    folder: Path
    names: list[SiteId]

    def __post_init__(self) -> None:
        authority = Authority()
        self.authority = authority
        self.processes: list[subprocess.Popen[str]] = []
        self.journal = Journal(self.folder)
        self.server = StreamServer(
            "127.0.0.1:0", authority.server(), run=RUN, sites=self.names, spool=self.journal.spool
        )
        self.carrier = StreamCarrier(Nobody(), self.server, self._invite, Patience(open_s=OPEN_S))
        self.runner = StepRunner(
            self.carrier, self.journal, QuietObserver(), deadline_s=OPEN_S, store_updates=True
        )
        self.num_steps = 0

    def round(self, state: GlobalState) -> tuple[GlobalState, float]:
        """One training round as the engine drives it; the next state, and seconds."""
        started = time.perf_counter()
        layout, rule = state.layout, FedAvg(state.layout.num_values)
        manifest = StepManifest(
            run=RUN,
            step=self.num_steps,
            kind="train",
            round=self.num_steps + 1,
            sites=tuple(self.names),
            spec_sha256="0" * 64,
            backbone_sha256=None,
            state=layout_to_wire(layout),
            state_sha256=state.digest(),
            reply=layout_to_wire(layout),
            update_norm=1e6,
            subjects=1000,
            bound=1e6,
            seed=0,
        )
        self.num_steps += 1
        quorum = Quorum(len(self.names), 1)
        result = self.runner.run(manifest, state, quorum, rule.fold, Fp32Update(coding="fp32"))
        if result.abandoned:
            raise RuntimeError(f"{result.refused} {result.missing}")
        values, _ = rule.finish(state.values, NO_ARRAY)
        after = state_of(layout, values)
        self.journal.store_as(after.digest(), as_bytes(after.values))
        self.runner.finish(result, after.digest())
        self.journal.keep_only({Digest(after.digest())})
        return after, time.perf_counter() - started

    @property
    def port(self) -> int:
        """Where sites connect to."""
        return int(self.server.invite(self.names[0]).address.rpartition(":")[2])

    def close(self) -> None:
        """End the run."""
        self.carrier.close()
        for process in self.processes:
            process.wait(30)

    def _invite(self, invites: Mapping[SiteId, SessionInvite]) -> None:
        for site, invite in invites.items():
            identity = self.authority.site(site)
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.stream.site"], stdin=subprocess.PIPE, text=True
            )
            wanted = {
                "site": site,
                "certificate": identity.certificate.decode(),
                "key": identity.key.decode(),
                "authority": identity.authority.decode(),
                "invite": invite.to_bytes().decode(),
            }
            assert process.stdin is not None
            process.stdin.write(json.dumps(wanted) + "\n")
            process.stdin.flush()
            self.processes.append(process)


@contextlib.contextmanager
def stalled(port: int, number: int) -> Iterator[None]:
    """So many connections of strangers that send the beginning of a handshake and then nothing."""
    with contextlib.ExitStack() as opened:
        for _ in range(number):
            each = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            each.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        yield


def measure(num_sites: int, num_bytes: int, repetitions: int, num_stalled: int) -> dict[str, Any]:
    """Rounds of one case; the first, in which everything is met for the first time, is not counted."""
    names = [SiteId(f"site{number:02d}") for number in range(num_sites)]
    with tempfile.TemporaryDirectory() as name:
        federation = Federation(Path(name) / "journal", names)
        small, _ = federation.round(_zeros(1024))
        federation.round(small)
        before = _reset_peak()
        state, _ = federation.round(_zeros(num_bytes // 4))
        cpu, others = time.process_time(), process_tree.descendants_cpu_seconds()
        seconds = []
        with stalled(federation.port, num_stalled):
            for _ in range(repetitions):
                state, taken = federation.round(state)
                seconds.append(taken)
        cpu = time.process_time() - cpu
        others = process_tree.descendants_cpu_seconds() - others
        extra = _status("VmHWM") - before
        federation.close()
    _require_mean(state, names, repetitions + 1)
    return {
        "num_sites": num_sites,
        "num_bytes": num_bytes,
        "num_stalled": num_stalled,
        "seconds": seconds,
        "aggregator_cpu_s": cpu / repetitions,
        "sites_cpu_s": others / repetitions,
        "extra_bytes": extra,
    }


def _zeros(size: int) -> GlobalState:
    layout = Layout((TensorSpec("w", "float32", (size,)),))
    # np.zeros would take no memory before somebody writes to it.
    return state_of(layout, np.full(size, 0.0, dtype=np.float32))


def _require_mean(state: GlobalState, names: list[SiteId], rounds: int) -> None:
    """The result is what the updates say.

    Raises:
        RuntimeError: it is another.
    """
    wanted = np.zeros(state.values.size)
    for site in names:
        wanted += update_of(site, state.values.size)
    wanted *= rounds / len(names)
    apart = np.linalg.norm(state.values - wanted) / np.linalg.norm(wanted)
    if apart > 1e-5:
        raise RuntimeError(f"the model is {apart:.1e} away from the mean of its updates")


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(field)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--repetitions", type=int, required=True)
    parser.add_argument("--stalled", type=int, default=0)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(wanted.sites, wanted.bytes, wanted.repetitions, wanted.stalled)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
