"""Growth with the number of sites: processor time a site, and memory, from 1 to 1,000 sites."""

from typing import Any

from benchmarks.simulator.measure import simulate
from benchmarks.simulator.workloads import Workload

SITES = (1, 10, 30, 100, 300, 1000)
QUICK_SITES = (1, 10, 100)
_ROUNDS = 4


def growth(*, quick: bool) -> list[dict[str, Any]]:
    """The small CNN, the bare loop and ours, one run each a number of sites.

    Returns:
        One object a number of sites: milliseconds of processor time a site and round, MiB.
    """
    found = []
    for num_sites in QUICK_SITES if quick else SITES:
        row: dict[str, Any] = {"num_sites": num_sites}
        for name in ("bare", "ours"):
            run = simulate(name, Workload("cnn", num_sites, _ROUNDS))
            row[name] = {"ms_a_site": run.cpu_s / num_sites * 1e3, "memory_mib": run.memory_mib}
        found.append(row)
        print(row, flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    head = "| sites | bare loop, CPU ms a site | ours | bare loop, MiB | ours |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| {row['num_sites']} "
        + "".join(f"| {row[name]['ms_a_site']:.1f} " for name in ("bare", "ours"))
        + "".join(f"| {row[name]['memory_mib']:.0f} " for name in ("bare", "ours"))
        + "|\n"
        for row in rows
    )
