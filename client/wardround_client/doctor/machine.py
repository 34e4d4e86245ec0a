"""The machine: its folders, its clock, what it lends to training."""

import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from wardround_client.airlock.limits import address
from wardround_client.doctor.examined import Examined
from wardround_client.doctor.findings import Checkup
from wardround_client.policy.control import AUDIT
from wardround_client.training.execution import usable_device
from wardround_client.worker.network import interfaces_up
from wardround_common.audit.verify import verified
from wardround_common.shared_model import SharedModel

_LITTLE_BYTES: Final = 1 << 30
_ANSWERS: Final = 16
"""Updates that a worker keeps at most: two of each of eight runs."""
_SLACK: Final = timedelta(minutes=5)


def check_machine(examined: Examined, found: Checkup) -> None:
    """Folders, socket, network, clock and device.

    Args:
        examined: the site.
        found: takes in what is found.
    """
    site, state = examined.site, examined.path(examined.site.worker.state)
    cache = examined.path(site.compute.cache)
    for key, folder in (("worker.state", state), ("compute.cache", cache)):
        if examined.may_see(folder, os.W_OK | os.X_OK) or not _is_anothers(folder):
            _check_folder(key, folder, found)
        else:
            found.note(
                "folder_not_seen",
                f"{key}: {folder} is another user's, which is right for the worker's; run this again as the "
                "worker's user to have it checked",
            )
    with found.noting():
        address(examined.path(site.worker.socket))
    up = interfaces_up()
    if up and site.worker.network == "refuse":
        found.note(
            "network_here",
            f"there is a network here ({', '.join(up)}), and the worker starts only where there is none: "
            "start it as docs/site-worker.md says",
        )
    if examined.may_see(state / AUDIT):
        _check_log(state / AUDIT, found, examined.now)
    with found.noting():
        usable_device(site.compute)
    cores, threads = os.cpu_count() or 1, site.compute.threads or 0
    if threads > cores:
        found.warn(
            "more_threads_than_cores",
            f"compute.threads = {threads}, and there are {cores} processors; write at most {cores}",
        )


def check_room(examined: Examined, model: SharedModel, found: Checkup) -> None:
    """Space on the disks for answers and caches.

    Args:
        examined: the site.
        model: of a federation: an answer is as large as what it trains.
        found: takes in what is found.
    """
    rounds = max(model.federation.rounds.count, 1)
    update = model.state_layout(rounds).num_bytes
    state, cache = (
        examined.path(name) for name in (examined.site.worker.state, examined.site.compute.cache)
    )
    for key, folder, wanted in (
        ("worker.state", state, _ANSWERS * update + _LITTLE_BYTES),
        ("compute.cache", cache, _LITTLE_BYTES),
    ):
        free = shutil.disk_usage(_existing(folder)).free
        if free < wanted:
            found.fault(
                "disk_space",
                f"{key}: {folder} has {free / 1e9:.1f} GB free, and {wanted / 1e9:.1f} GB may be needed; "
                "make room, or name a folder on another disk",
            )


def _is_anothers(folder: Path) -> bool:
    try:
        return folder.stat().st_uid != os.geteuid()
    except OSError:
        return True


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _check_folder(key: str, folder: Path, found: Checkup) -> None:
    there = _existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        found.fault(
            "folder_unusable",
            f"{key}: {there} is no folder that this user can write to; correct the path, or its owner",
        )
    elif there == folder and folder.stat().st_mode & 0o077:
        found.fault(
            "folder_open",
            f"{key}: {folder} can be read by others than its owner, and holds what patients' data came "
            f"to: chmod 700 {folder}",
        )


def _check_log(audit: Path, found: Checkup, now: datetime) -> None:
    """The audit log verifies, and was not written in the future."""
    if not audit.exists():
        return
    log = verified(audit)
    if log.bad is not None:
        found.fault(
            "audit_damaged",
            f"{audit}: entry {log.bad.index} is bad ({log.bad.code}), and the worker will not start; keep "
            "the folder as evidence and see docs/runbooks/incident.md",
        )
    elif log.entries and datetime.fromisoformat(log.entries[-1].at) > now + _SLACK:
        found.fault(
            "clock_behind",
            f"{audit}: the last entry is of {log.entries[-1].at[:16]} (UTC), which is in the future by this "
            "machine's clock; set the clock",
        )
