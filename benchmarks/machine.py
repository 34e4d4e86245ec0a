"""Where a figure was measured: processor, memory, load, versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("wardround", "torch", "numpy", "flwr", "ray")


def describe() -> dict[str, object]:
    """The machine as it is now; a version is None where the package is not installed."""
    return {
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "memory_gib": round(_memory_kib() / 2**20, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def line(machine: dict[str, object]) -> str:
    """The same in one line, for a table's caption."""
    versions = machine["versions"]
    assert isinstance(versions, dict)
    named = ", ".join(f"{package} {number or 'absent'}" for package, number in versions.items())
    return (
        f"{machine['num_cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, "
        f"Python {machine['python']}, {named}"
    )


def _processor() -> str:
    for entry in Path("/proc/cpuinfo").read_text().splitlines():
        if entry.startswith("model name"):
            return entry.partition(":")[2].strip()
    return platform.machine()


def _memory_kib() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
