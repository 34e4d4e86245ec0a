"""Kills a simulation from outside at every fsync and rename, resumes it, and compares the model.

    python -m tests.fault.crash_strace                        # every point; about 20 minutes
    python -m tests.fault.crash_strace --point fsync:7 --point rename:3
    python -m tests.fault.crash_strace --federation examples/heart.toml

Whole processes of ``wardround simulate``: nothing in them knows of the kill. strace (1) counts the
calls of an uninterrupted run and then sends SIGKILL at the N-th one, for every N. Prints a line a
point and ``N of N points``; the exit status is 1 if a point ended in another model.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support import write_dataset

CALLS = ("fsync", "rename", "renameat", "renameat2")
TINY = """\
[federation]
name = "tiny"
sites = ["a", "b"]
[data]
modality = "tabular"
subject = "id"
label = "label"
numeric = ["x1", "x2"]
validation_fraction = 0.2
[data.categorical]
colour = ["blue", "red"]
[task]
kind = "classification"
labels = ["no", "yes"]
[rounds]
count = 3
[evaluation]
bootstrap = 100
[simulation]
dataset = "data"
threads = 1
checkpoint_s = 0.0
[simulation.partition]
kind = "column"
column = "hospital"
values.a = ["a"]
values.b = ["b"]
"""


def simulate(federation: Path, out: Path, *wrapper: str, resume: bool = False) -> int:
    """One process; its exit status (negative: killed)."""
    start = "from wardround_common.cli import main; main()"
    command = [sys.executable, "-c", start, "simulate", str(federation)]
    command += ["--out", str(out), "--quiet", *(["--resume"] if resume else [])]
    done = subprocess.run(
        [*wrapper, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WARDROUND_CACHE": str(out.parent / "cache")},
    )
    if done.returncode > 0 and not wrapper:
        sys.stderr.write(done.stderr)
    return done.returncode


def model_of(out: Path) -> str:
    """The digest of a run's model."""
    path = out / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no model"


def counted(federation: Path, out: Path) -> Counter[str]:
    """The calls of an uninterrupted run that succeeded."""
    log = out.parent / "strace.log"
    trace = ("strace", "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(CALLS)}")
    assert simulate(federation, out, *trace) == 0, "the uninterrupted run failed"
    return Counter(re.findall(rf"^\d+ +({'|'.join(CALLS)})\(", log.read_text(), re.MULTILINE))


def survives(federation: Path, out: Path, call: str, number: int, model: str) -> bool:
    """Kill at one point, resume, compare."""
    inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")
    killed = simulate(federation, out, "strace", "-f", "-qq", "-o", os.devnull, *inject)
    resumed = simulate(federation, out, resume=True)
    same = model_of(out) == model
    good = killed in {-9, 137} and resumed == 0 and same
    said = "same model" if good else f"killed {killed}, resumed {resumed}, same model: {same}"
    print(f"{call} {number}: {said}", flush=True)
    return good


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--federation", type=Path)
    parser.add_argument("--point", action="append", default=[], help="CALL:N, may be repeated")
    chosen = parser.parse_args()
    if shutil.which("strace") is None:
        parser.error("strace is not installed")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        federation = chosen.federation or place / "tiny.toml"
        if chosen.federation is None:
            federation.write_text(TINY)
            write_dataset(place / "data", ("a", "b"))
        assert simulate(federation, place / "first") == 0, "the first run failed"  # fills caches
        calls = counted(federation, place / "whole")
        model = model_of(place / "whole")
        assert model == model_of(place / "first"), "two runs, two models"
        print(f"model {model}; {dict(calls)}", flush=True)
        points = [(call, number) for call in calls for number in range(1, calls[call] + 1)]
        if chosen.point:
            points = [(p.split(":")[0], int(p.split(":")[1])) for p in chosen.point]
        good = 0
        for call, number in points:
            good += survives(federation, place / "run", call, number, model)
            shutil.rmtree(place / "run")
    print(f"{good} of {len(points)} points")
    return int(good != len(points))


if __name__ == "__main__":
    sys.exit(main())
