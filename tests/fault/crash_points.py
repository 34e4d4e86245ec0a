"""Kills a run at every point where the disk changes, resumes it, and compares the model.

    python -m tests.fault.crash_points simulate
    python -m tests.fault.crash_points engine --torn
    python -m tests.fault.crash_points engine --broken record_first

The process has everything imported; each killed run is a forked child that counts its calls of fsync,
rename, unlink and mkdir and sends itself SIGKILL instead of the N-th. The parent, which has none of
its memory, goes on with what it left. Prints one JSON object: how many points there are, and which of them did
not end with the uninterrupted run's model or left a damaged journal.

``--torn`` also takes back half of the line that an append was about to make durable, as a loss of
power may. ``--broken`` breaks a rule of the journal, to show that the enumeration would notice; it
ends at the first point that does.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support import FakeCarrier, fake_sites, federation, run_engine, simulated, write_dataset
from wardround_client.worker.error_feedback import ErrorFeedback
from wardround_common import durable
from wardround_common import shared_model as shared_model_module
from wardround_common.errors import IntegrityError
from wardround_common.types import sha256_hex
from wardround_server.progress import QuietObserver
from wardround_server.rounds import journal as journal_module
from wardround_server.rounds.engine import RoundEngine
from wardround_server.rounds.journal import Journal
from wardround_server.simulation.simulate import SimulationPlan, simulate_federation

COUNTED = ("fsync", "replace", "unlink", "mkdir")
Run = Callable[[Path, bool], str]


def simulate(
    folder: Path, resume: bool, checkpoint_s: float = 0.0, coding: str = "fp32", rounds: int = 3
) -> str:
    """A real simulation of two sites; updates are not stored."""
    spec = simulated(
        ("a", "b"),
        data={"standardise": "federated", "validation_fraction": 0.2},
        exact_head={"enabled": True, "folds": 2},
        head={"warm_start": True},
        evaluation={"compare": False},
        rounds={"count": rounds},
        exchange={"update": {"coding": coding}},
        simulation={"checkpoint_s": checkpoint_s},
    )
    plan = SimulationPlan(
        spec,
        base=folder.parent,
        raw=None,
        out=folder,
        cache=folder.parent / "cache",
        resume=resume,
        on_failure=lambda site, error: None,
    )
    report = simulate_federation(plan, QuietObserver())
    digest = sha256_hex((folder / "model.safetensors").read_bytes())
    assert report.model_sha256 == digest
    return digest


def waiting(
    folder: Path, resume: bool, coding: str = "fp32", rounds: int = 3, every: int = 7
) -> str:
    """The same, durable only now and then: at every seventh moment at which it might be."""
    moments = itertools.count(1)

    def settle(self: Journal) -> None:
        if next(moments) % every == 0:
            self.flush()

    settle_by_time, Journal.settle = Journal.settle, settle  # type: ignore[method-assign]
    try:
        return simulate(folder, resume, checkpoint_s=1e6, coding=coding, rounds=rounds)
    finally:
        Journal.settle = settle_by_time  # type: ignore[method-assign]


def coded(folder: Path, resume: bool) -> str:
    """Coded updates with error feedback, durable now and then: what was lost must be found again."""
    return waiting(folder, resume, coding="top-k", rounds=8, every=11)


def engine(folder: Path, resume: bool) -> str:
    """The engine over sites in memory; updates are stored before they are folded."""
    del resume
    spec = federation(
        federation={"sites": ["a", "b"]},
        data={"standardise": "federated", "validation_fraction": 0.2},
        exact_head={"enabled": True, "folds": 2},
        head={"warm_start": True},
        aggregation={"rule": "fedadam"},  # its moments must survive too
    )
    outcome = run_engine(spec, FakeCarrier(fake_sites(spec)), folder / "journal")
    return outcome.state.digest()


RUNS: dict[str, Run] = {
    "simulate": simulate,
    "waiting": waiting,
    "coded": coded,
    "engine": engine,
}


# -- rules broken on purpose -------------------------------------------------------------------


def _no_rename(path: Path, data: bytes | memoryview) -> None:
    """Written in place, in two halves."""
    half = len(data) // 2
    with path.open("wb") as file:
        for part in (data[:half], data[half:]):
            file.write(part)
            file.flush()
            os.fsync(file.fileno())


def _break_record_first() -> None:
    """The record that names an object is made durable before the object."""
    store_as, append = Journal.store_as, Journal.append
    late: list[tuple[Any, bytes]] = []

    def late_store(self: Journal, digest: Any, data: bytes | memoryview) -> None:
        late.append((digest, bytes(data)))

    def early_append(self: Journal, kind: str, **fields: object) -> None:
        append(self, kind, **fields)
        while late:
            store_as(self, *late.pop())

    Journal.store_as, Journal.append = late_store, early_append  # type: ignore[method-assign]


def _break_tidy() -> None:
    """The states of past rounds are deleted, and the last one with them."""

    def tidy(self: RoundEngine, *states: object) -> None:
        self._journal.keep_only(self._kept)

    RoundEngine._tidy = tidy  # type: ignore[method-assign]


def _break_together() -> None:
    """Records that waited are written line by line, though the states between are gone."""

    def flush(self: Journal) -> None:
        for digest, data in self._waiting_objects.items():
            journal_module.replace_file(self._objects / digest, data)
        self._waiting_objects.clear()
        while self._waiting:
            self._write(self._waiting.pop(0))

    Journal.flush = flush  # type: ignore[method-assign]


def _break_remainders() -> None:
    """What coding lost is deleted when a later round has been coded, not when the run is durable."""
    keep = ErrorFeedback.keep

    def keep_one(self: ErrorFeedback, round_: int, remainder: Any) -> None:
        keep(self, round_, remainder)
        for path in self._folder.glob("*.f32"):
            if path.stem != str(round_):
                path.unlink()

    ErrorFeedback.keep = keep_one  # type: ignore[method-assign]


def _break_cut() -> None:
    """A torn last line is ignored, not cut off."""
    Journal._cut = lambda self, size: None  # type: ignore[method-assign]


def _break_rename() -> None:
    journal_module.replace_file = _no_rename


BROKEN: dict[str, Callable[[], None]] = {
    "no_rename": _break_rename,
    "record_first": _break_record_first,
    "tidy_all": _break_tidy,
    "no_cut": _break_cut,
    "not_together": _break_together,
    "remainders": _break_remainders,
}


# -- children ----------------------------------------------------------------------------------


@dataclass
class Disk:
    """Counts what changes the disk, and dies at one of its calls.

    Nothing is really synced: the kernel lives on, so its cache is what a resumed run reads.
    """

    die_at: int
    torn: bool
    calls: int = 0

    def install(self) -> None:
        for name in COUNTED:
            setattr(os, name, self._counting(name, getattr(os, name)))

    def _counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.die_at:
                if name == "fsync" and self.torn:
                    _tear(args[0])
                os.kill(os.getpid(), signal.SIGKILL)
            return None if name == "fsync" else real(*args, **kwargs)

        return counted


def _tear(descriptor: int) -> None:
    """Take back half of the last line of a journal."""
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    if path.suffix == ".jsonl":
        data = path.read_bytes()
        line = data[:-1].rpartition(b"\n")[2]
        os.truncate(path, len(data) - 1 - len(line) // 2)


def killed_at(run: Run, folder: Path, point: int, *, torn: bool) -> str:
    """``killed``, or what a forked child said that was not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        Disk(point, torn).install()
        said = outcome(run, folder, resume=False)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else said


def outcome(run: Run, folder: Path, *, resume: bool) -> str:
    """The model's digest, or what went wrong."""
    shared_model_module._built.clear()
    try:
        return run(folder, resume)
    except Exception as error:  # noqa: BLE001  it is the finding
        return f"{type(error).__name__}: {getattr(error, 'code', error)}"


def enumerate_points(run: Run, place: Path, *, torn: bool, first: bool) -> dict[str, Any]:
    """Every point: killed there, resumed here, where nothing of the killed run is in memory."""
    model = outcome(run, place / "warm", resume=False)  # imports what is imported late
    real = {name: getattr(os, name) for name in COUNTED}
    disk = Disk(0, torn=False)
    disk.install()
    assert outcome(run, place / "whole", resume=False) == model
    for name in COUNTED:
        setattr(os, name, real[name])
    os.fsync = lambda descriptor: None
    wrong = []
    for point in range(1, disk.calls + 1):
        folder = place / f"point-{point}"
        killed = killed_at(run, folder, point, torn=torn)
        resumed = outcome(run, folder, resume=True)
        try:
            journal = Journal(folder / "journal")
            for path in (folder / "journal" / "objects").iterdir():
                journal.load(path.name)
        except IntegrityError as error:
            resumed = error.code
        if (killed, resumed) != ("killed", model):
            wrong.append([point, killed, resumed])
            if first:
                break
        shutil.rmtree(folder)
    return {"points": disk.calls, "model": model, "wrong": wrong}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--torn", action="store_true")
    parser.add_argument("--broken", choices=BROKEN)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    assert journal_module.replace_file is durable.replace_file
    if chosen.broken:
        BROKEN[chosen.broken]()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_dataset(place / "data", ("a", "b"))
        found = enumerate_points(
            RUNS[chosen.run], place, torn=chosen.torn, first=chosen.broken is not None
        )
        json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
