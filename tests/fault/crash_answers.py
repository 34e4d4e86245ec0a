"""Kills a site's worker at every point where the disk changes, asks again, and compares what had left.

    python -m tests.fault.crash_answers

As in ``crash_points``: each killed worker is a forked child that sends itself SIGKILL instead of its
N-th fsync, rename, unlink or mkdir. The parent is the worker that is started after it. What had left the
site is asked for again: it must be the same bytes, or be refused, and is never computed a second time.
Then the rest is asked. It is done again with each rule of the answers broken, to show that it would be
noticed, until the first point that does. Prints one JSON object: for each case how many points there
are, and which of them went wrong.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.airlocks import Asked, Hospital, here
from tests.fault.crash_points import COUNTED, Disk, killed_at, outcome
from tests.policies import policy
from wardround_client.policy.control import AUDIT, SiteControl
from wardround_client.worker import answers as answers_module
from wardround_client.worker.answers import Answers, Stored
from wardround_client.worker.desk import SiteDesk
from wardround_client.worker.error_feedback import ErrorFeedback
from wardround_common.audit.verify import verified
from wardround_common.errors import IntegrityError, WardroundError
from wardround_common.spec.load import load_site
from wardround_common.types import SiteId, sha256_hex


def steps(hospital: Hospital) -> list[Asked]:
    """A run of coded updates: each depends on what the one before it lost."""
    kinds = [("describe", 0), ("moments", 0)]
    kinds += [(kind, round_) for round_ in (1, 2, 3) for kind in ("train", "evaluate")]
    return [hospital.question(kind, r, step=step) for step, (kind, r) in enumerate(kinds)]


def runs(hospital: Hospital) -> list[Asked]:
    """More runs than are kept."""
    return [hospital.question("describe", run=f"{number:016x}") for number in range(11)]


QUESTIONS: dict[str, Callable[[Hospital], list[Asked]]] = {"steps": steps, "runs": runs}


class Site:
    """A site that is asked one question after the other.

    Args:
        hospital: its files.
        questions: in order.
    """

    def __init__(self, hospital: Hospital, questions: list[Asked]) -> None:
        self._hospital = hospital
        self._questions = questions
        self._left: dict[str, str] = {}

    def __call__(self, folder: Path, resume: bool) -> str:
        """Ask everything; the digest of all arrays.

        Args:
            folder: the worker's state, and beside it a line for each answer that has left.
            resume: whether the worker was there before.
        """
        folder.mkdir(exist_ok=True)
        log = folder / "left.jsonl"
        left = [json.loads(line) for line in log.read_text().splitlines()] if resume else []
        self._left = {entry["question"]: entry["answer"] for entry in left}
        arrays = [entry["array"] for entry in left]
        spec = load_site(self._hospital.file)
        worker = spec.worker.model_copy(update={"state": str(folder / "state")})
        control = SiteControl(SiteId(spec.name), policy(), folder / "state")
        self._require_logged(folder / "state" / AUDIT)
        site = spec.model_copy(update={"worker": worker})
        desk = SiteDesk(site, self._hospital.folder, control)
        try:
            for place, asked in enumerate(self._questions):
                if place < len(left):
                    self._again(desk, asked)
                    continue
                receipt, array = self._answer(desk, asked)
                arrays.append(sha256_hex(array))
                line = {
                    "question": asked.manifest.digest(),
                    "answer": sha256_hex(receipt + array),
                    "array": arrays[-1],
                }
                with log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        finally:
            desk.close()
        return sha256_hex("".join(arrays).encode())

    def _require_logged(self, log: Path) -> None:
        """What has left is in the audit log, whenever the worker died."""
        logged = {
            entry.fields["manifest_sha256"]
            for entry in verified(log).entries
            if entry.event == "update_released"
        }
        if not set(self._left) <= logged:
            raise IntegrityError("it left, and the log does not say so", code="left_unlogged")

    def _again(self, desk: SiteDesk, asked: Asked) -> None:
        """What has left is the same or refused."""
        try:
            receipt, array = self._answer(desk, asked)
        except WardroundError as error:
            if error.code != "answer_forgotten":
                raise
        else:
            if sha256_hex(receipt + array) != self._left[asked.manifest.digest()]:
                raise IntegrityError("another answer", code="released_twice")

    def _answer(self, desk: SiteDesk, asked: Asked) -> tuple[bytes, bytes]:
        def receive() -> memoryview | None:
            if asked.manifest.digest() in self._left:
                raise IntegrityError("it had left", code="computed_twice")
            return asked.array or None

        stored = desk.answer(asked.manifest, asked.array.nbytes, receive, here())
        with stored.opened() as file:
            return stored.receipt, b"" if file is None else file.read()


# -- rules broken on purpose -------------------------------------------------------------------


def _break_receipt_first() -> None:
    """The receipt is durable before the array that it names."""
    replace = answers_module.replace_file
    late: list[tuple[Path, bytes]] = []

    def replace_file(path: Path, data: bytes | memoryview) -> None:
        if path.suffix == ".array":
            late.append((path, bytes(data)))
            return
        replace(path, data)
        while late:
            replace(*late.pop())

    answers_module.replace_file = replace_file


def _break_forgetful() -> None:
    """Nobody looks whether a question has been answered."""
    Answers.find = lambda self, manifest: None  # type: ignore[method-assign]


def _break_no_tombstone() -> None:
    """A run is forgotten, and that it was answered."""
    real = Answers._forget_runs

    def forget(self: Answers, but: str) -> None:
        real(self, but)
        for path in self._folder.glob("*.last"):
            path.unlink()

    Answers._forget_runs = forget  # type: ignore[method-assign]


def _break_remainder_last() -> None:
    """What coding lost is written when the answer is durable already."""
    keep_remainder, keep_answer = ErrorFeedback.keep, Answers.keep
    late: list[tuple[Any, ...]] = []

    def keep(self: Answers, *arguments: Any) -> Stored:
        stored = keep_answer(self, *arguments)
        while late:
            keep_remainder(*late.pop())
        return stored

    ErrorFeedback.keep = lambda *arguments: late.append(arguments)  # type: ignore[method-assign]
    Answers.keep = keep  # type: ignore[method-assign]


def _break_log_late() -> None:
    """An answer leaves before the audit log says so."""
    real = SiteControl.release
    late: list[tuple[Any, ...]] = []

    def release(self: SiteControl, manifest: Any, stored: Stored) -> Stored:
        while late:
            control, *before = late.pop()
            if control is self:
                real(self, *before)
        late.append((self, manifest, stored))
        return stored

    SiteControl.release = release  # type: ignore[method-assign]


BROKEN: dict[str, Callable[[], None]] = {
    "receipt_first": _break_receipt_first,
    "forgetful": _break_forgetful,
    "no_tombstone": _break_no_tombstone,
    "remainder_last": _break_remainder_last,
    "log_late": _break_log_late,
}


CASES = (
    ("steps", ""),
    ("runs", ""),
    ("steps", "receipt_first"),
    ("steps", "forgetful"),
    ("steps", "remainder_last"),
    ("steps", "log_late"),
    ("runs", "no_tombstone"),
)
"""Questions, and the rule that is broken."""


def enumerate_points(site: Site, place: Path, *, first: bool) -> dict[str, Any]:
    """Every point: killed there, started again here."""
    real = {name: getattr(os, name) for name in COUNTED}
    disk = Disk(0, torn=False)
    disk.install()
    model = outcome(site, place / "whole", resume=False)
    for name in COUNTED:
        setattr(os, name, real[name])
    os.fsync = lambda descriptor: None
    wrong = []
    for point in range(1, disk.calls + 1):
        folder = place / f"point-{point}"
        killed = killed_at(site, folder, point, torn=False)
        folder.mkdir(exist_ok=True)
        (folder / "left.jsonl").touch()
        resumed = outcome(site, folder, resume=True)
        if (killed, resumed) != ("killed", model):
            wrong.append([point, killed, resumed])
            if first:
                break
        shutil.rmtree(folder)
    return {"points": disk.calls, "model": model, "wrong": wrong}


def in_child(site: Site, place: Path, broken: str) -> Any:
    """What a forked child finds, whose rules may be broken."""
    place.mkdir()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        if broken:
            BROKEN[broken]()
        found = enumerate_points(site, place, first=bool(broken))
        with os.fdopen(writing, "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        found = json.load(file)
    os.waitpid(child, 0)
    return found


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "hospital").mkdir()
        coded = {"update": {"coding": "top-k", "fraction": 0.2}}
        hospital = Hospital(place / "hospital", exchange=coded)
        sites = {name: Site(hospital, made(hospital)) for name, made in QUESTIONS.items()}
        outcome(sites["steps"], place / "warm", resume=False)  # imports what is imported late
        found = {
            " ".join(filter(None, case)): in_child(sites[case[0]], place / "-".join(case), case[1])
            for case in CASES
        }
        json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
