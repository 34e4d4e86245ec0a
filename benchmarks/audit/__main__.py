"""Measures what an entry costs: ours, and what is common instead, entry by entry in turn.

``plain`` writes a line and flushes it, as audit files usually are written: no hash, no signature, gone
in a power cut. ``fsynced`` makes the line durable. ``ours`` is durable, chained, hashed into the tree of
RFC 6962 and signed. ``unsynced`` is ours without its fsync.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, papers
from wardround_common.audit.log import AuditLog
from wardround_common.audit.verify import verified

RESULTS: Final = Path(__file__).parents[1] / "results" / "audit.json"
_COMMAND: Final = "python benchmarks/run.py --only audit"
_FIELDS: Final[dict[str, Any]] = {
    "run": "0123456789abcdef",
    "kind": "train",
    "manifest_sha256": "0" * 64,
    "receipt_sha256": "1" * 64,
    "update_sha256": "2" * 64,
    "bytes_out": 45_066_098,
}
_Write = Callable[[int], object]


def ways(folder: Path) -> dict[str, _Write]:
    """Name -> writes one entry."""
    plain, fsynced = (folder / f"{name}.log" for name in ("plain", "fsynced"))
    ours, unsynced = AuditLog(folder / "ours"), AuditLog(folder / "unsynced")
    files = {path: path.open("ab") for path in (plain, fsynced)}

    def line(path: Path, number: int) -> None:
        text = json.dumps(
            {"at": time.time(), "event": "update_released", "step": number, **_FIELDS}
        )
        files[path].write(text.encode() + b"\n")
        files[path].flush()

    def durable(number: int) -> None:
        line(fsynced, number)
        os.fsync(files[fsynced].fileno())

    def without_fsync(number: int) -> None:
        real, os.fsync = os.fsync, lambda _: None
        try:
            unsynced.append("update_released", step=number, **_FIELDS)
        finally:
            os.fsync = real

    return {
        "plain": lambda number: line(plain, number),
        "fsynced": durable,
        "unsynced": without_fsync,
        "ours": lambda number: ours.append("update_released", step=number, **_FIELDS),
    }


def measure(entries: int) -> dict[str, list[float]]:
    """Way -> microseconds of each entry; the log that was written verifies."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        spent: dict[str, list[float]] = {}
        every = ways(folder)
        for number in range(entries):
            for way, write in every.items():
                started = time.perf_counter()
                write(number)
                spent.setdefault(way, []).append((time.perf_counter() - started) * 1e6)
        started = time.perf_counter()
        found = verified(folder / "ours")
        if found.bad is not None or len(found.entries) != entries + 1:
            raise SystemExit("the log that was written does not verify")
        spent["verify"] = [(time.perf_counter() - started) * 1e6 / entries]
    return spent


def table(spent: dict[str, list[float]]) -> str:
    """One row a way."""
    titles = {
        "plain": "a line, flushed",
        "fsynced": "a line, durable",
        "unsynced": "ours without its fsync",
        "ours": "ours: durable, chained, in the tree, signed",
    }
    rows = ["| an entry | median | 99 % | of a durable line |", "|---|--:|--:|--:|"]
    for way, title in titles.items():
        ratios = [mine / theirs for mine, theirs in zip(spent[way], spent["fsynced"], strict=True)]
        tail = statistics.quantiles(spent[way], n=100)[98]
        rows.append(
            f"| {title} | {statistics.median(spent[way]):.0f} us | {tail:.0f} us "
            f"| {statistics.median(ratios):.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure, write results and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer entries")
    entries = 300 if parser.parse_args().quick else 3000
    here = machine.describe()
    spent = measure(entries)
    RESULTS.write_text(
        json.dumps({"command": _COMMAND, "machine": here, "entries": entries, "us": spent}) + "\n"
    )
    text = (
        f"`{_COMMAND}`; {machine.line(here)}; {entries:,} entries of each, in turn; verifying takes "
        f"{spent['verify'][0]:.0f} us an entry.\n\n{table(spent)}"
    )
    papers.put(papers.MEASUREMENTS, "audit", text)
    print(text)


if __name__ == "__main__":
    main()
