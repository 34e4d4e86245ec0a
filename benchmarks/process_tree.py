"""Processor time and memory of a process and all its descendants, from Linux's ``/proc``.

1. Processor time is user and system time, to the kernel's tick (10 ms); this process is better
   read by ``time.process_time``.
2. Memory is the proportional set size: a page that n processes share counts 1/n in each, so the
   sum over the tree is what the tree takes of the machine; what was swapped out counts likewise.
"""

import os
import resource
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def descendants_cpu_seconds() -> float:
    """Processor time used so far by all descendants, ended ones included, in seconds."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(map(_cpu_of, descendants(os.getpid())))


def memory_mib(pid: int = 0) -> float:
    """Proportional set size of the tree now, in MiB.

    Args:
        pid: its root; 0 for this process.
    """
    root = pid or os.getpid()
    return sum(map(_pss_kib, [root, *descendants(root)])) / 1024


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            fields = _stat(int(folder.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, unseen = [], list(children.get(pid, ()))
    while unseen:
        child = unseen.pop()
        found.append(child)
        unseen.extend(children.get(child, ()))
    return found


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the third (state) on; empty if the process is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_of(pid: int) -> float:
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) * _TICK_S if fields else 0.0


def _pss_kib(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    rows = (row.split() for row in text.splitlines())
    return sum(int(row[1]) for row in rows if row[0] in {"Pss:", "SwapPss:"})
