"""The folder of one run of the aggregator, and the small files in it that processes talk by.

::

    federation.toml   the federation, as it was given
    run.json          its name here, and when it was asked for
    flower.json       Flower's run for it; written by the supervisor
    progress.json     where it stands; written by the ServerApp
    outcome.json      how it ended: done, failed or stopped; no file, no end
    events.jsonl      what happened; failure.txt: what went wrong last, in full
    lock              held by the ServerApp that drives it
    audit/            the audit log of the run
    journal/          see :mod:`wardround_server.rounds.journal`

A file has one writer and is replaced as a whole. ``outcome.json`` is written once: whoever is
first decides how a run ended.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from wardround_common.durable import fsync_folder, write_file
from wardround_common.errors import ConfigError, RoundError
from wardround_server.aggregator.folder import AggregatorFolder, held, is_held

Ended = Literal["done", "failed", "stopped"]
RUN_NAME: Final = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class RunInfo:
    """``run.json``.

    Attributes:
        name: for people.
        created: Unix time.
    """

    name: str
    created: float


@dataclass(frozen=True, slots=True)
class FlowerAttempt:
    """``flower.json``.

    Attributes:
        run_id: Flower's number.
        attempt: 1 for the first.
        started: Unix time.
        num_records: records of the journal when it was started.
        without_progress: attempts before this one that added none, one after the other.
    """

    run_id: int
    attempt: int
    started: float
    num_records: int = 0
    without_progress: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """``outcome.json``.

    Attributes:
        state: how the run ended.
        code: of a failure; empty otherwise.
        message: for the aggregator's operator.
        model_sha256: of the model, if there is one.
        ended: Unix time.
    """

    state: Ended
    code: str = ""
    message: str = ""
    model_sha256: str = ""
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """``progress.json``: where a run stands.

    Attributes:
        attempt: of which Flower run this is the word.
        step, kind, round: under way, or the last one; step -1 before the first.
        num_rounds: that the federation asks for.
        sites: of the roster.
        answered: whose contribution to the step was admitted.
        refused: site -> code, in this step.
        ways: site -> how it was asked last.
        bytes_down, bytes_up: in all finished steps of this attempt.
        seconds: kind of step -> wall time.
        phases: what sites did -> their seconds, summed.
        updated: Unix time.
    """

    attempt: int
    step: int = -1
    kind: str = ""
    round: int = 0
    num_rounds: int = 0
    sites: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    updated: float = 0.0

    @property
    def waited_for(self) -> tuple[str, ...]:
        """Who has not answered the step."""
        heard = {*self.answered, *self.refused}
        return tuple(site for site in self.sites if site not in heard)


Value = TypeVar("Value", RunInfo, FlowerAttempt, Outcome, Progress)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run.

    Attributes:
        path: its folder; the folder's name is the run's identifier.
    """

    path: Path

    @property
    def run(self) -> str:
        """16 hexadecimal digits."""
        return self.path.name

    @property
    def federation(self) -> Path:
        """The federation file."""
        return self.path / "federation.toml"

    @property
    def events(self) -> Path:
        """What its ServerApps logged."""
        return self.path / "events.jsonl"

    @property
    def failure(self) -> Path:
        """What went wrong last, in full."""
        return self.path / "failure.txt"

    @property
    def audit(self) -> Path:
        """The audit log of the run."""
        return self.path / "audit"

    @property
    def info(self) -> RunInfo:
        """What was asked for."""
        return _read(self.path / "run.json", RunInfo) or RunInfo(self.run, 0.0)

    @property
    def attempt(self) -> FlowerAttempt | None:
        """Flower's run for it; None before the first."""
        return _read(self.path / "flower.json", FlowerAttempt)

    @property
    def progress(self) -> Progress | None:
        """Where it stands; None before a ServerApp said so."""
        return _read(self.path / "progress.json", Progress)

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it goes on."""
        return _read(self.path / "outcome.json", Outcome)

    @property
    def num_records(self) -> int:
        """Records of its journal; it grows while the run gets on."""
        try:
            return (self.path / "journal" / "journal.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    @property
    def is_driven(self) -> bool:
        """Whether a ServerApp drives it now."""
        return is_held(self.path / "lock")

    @contextlib.contextmanager
    def driven(self) -> Iterator[None]:
        """Drive it: no other process can at the same time.

        Raises:
            ConfigError: another one does.
        """
        busy = ConfigError(f"run {self.run} is driven by another process", code="run_busy")
        with held(self.path / "lock", busy):
            yield

    def write_attempt(self, attempt: FlowerAttempt) -> None:
        """Record Flower's run for it."""
        _write(self.path / "flower.json", attempt)

    def write_progress(self, progress: Progress) -> None:
        """Say where it stands; not durable: it is said again after a crash."""
        path = self.path / "progress.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(progress)))
        temporary.replace(path)

    def end(self, outcome: Outcome) -> bool:
        """Record how it ended; whether this was the first word on it."""
        temporary = self.path / f".outcome.{secrets.token_hex(4)}"
        write_file(temporary, json.dumps(asdict(outcome)).encode())
        try:
            os.link(temporary, self.path / "outcome.json")
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        fsync_folder(self.path)
        return True

    def reopen(self) -> None:
        """Take back how it ended: it goes on, with as many attempts as at first.

        Raises:
            RoundError: it is done.
        """
        outcome = self.outcome
        if outcome is not None and outcome.state == "done":
            raise RoundError(f"run {self.run} is done; its model is there", code="run_done")
        attempt = self.attempt
        if attempt is not None:
            self.write_attempt(FlowerAttempt(0, attempt.attempt, attempt.started, self.num_records))
        (self.path / "outcome.json").unlink(missing_ok=True)
        fsync_folder(self.path)


def new_run(folder: AggregatorFolder, federation: Path, name: str) -> RunRecord:
    """Ask for a run; whoever keeps the aggregator up begins it.

    Args:
        folder: the aggregator's.
        federation: a federation file that was found to be in order.
        name: for people.
    """
    run = secrets.token_hex(8)
    making = folder.runs / f".{run}"
    making.mkdir(mode=0o700)
    shutil.copyfile(federation, making / "federation.toml")
    _write(making / "run.json", RunInfo(name, time.time()))
    making.rename(folder.runs / run)
    fsync_folder(folder.runs)
    return RunRecord(folder.runs / run)


def all_runs(folder: AggregatorFolder) -> list[RunRecord]:
    """All runs, in the order in which they were asked for."""
    found = [RunRecord(path) for path in folder.runs.iterdir() if RUN_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda each: (each.info.created, each.run))


def find_run(folder: AggregatorFolder, run: str) -> RunRecord:
    """A run by its identifier, its beginning, or its name.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found = [each for each in all_runs(folder) if each.run.startswith(run) or each.info.name == run]
    if len(found) == 1:
        return found[0]
    known = ", ".join(each.run for each in found or all_runs(folder)) or "there are none"
    what = "there is no such run" if not found else "that is more than one run"
    raise ConfigError(f"{run}: {what}; runs: {known}", code="run_unknown")


def _read(path: Path, kind: type[Value]) -> Value | None:
    """A file's content; None if it is not there."""
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()}
    return kind(**fields)


def _write(path: Path, value: RunInfo | FlowerAttempt) -> None:
    write_file(path, json.dumps(asdict(value)).encode())
