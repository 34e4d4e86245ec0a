"""``wardround site check``: everything in order, and what a fault makes meaningless is left out."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from wardround_client.airlock.client import AirlockClient, AirlockUnavailable
from wardround_client.doctor.data import check_data
from wardround_client.doctor.examined import Examined
from wardround_client.doctor.findings import Checkup
from wardround_client.doctor.identity import check_identity
from wardround_client.doctor.machine import check_machine, check_room
from wardround_client.doctor.reach import check_reach
from wardround_client.doctor.rehearsal import rehearse
from wardround_client.policy.papers import broken_rules, site_policy
from wardround_common.memory import available_mib
from wardround_common.shared_model import SharedModel
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.load import load_federation, load_site
from wardround_common.threads import use_threads

LIMIT_S: Final = 45.0
_MUCH: Final = 0.9


def check_site(
    file: Path,
    federation: Path | None = None,
    *,
    limit_s: float = LIMIT_S,
    now: datetime | None = None,
) -> Checkup:
    """Look at a site.

    Args:
        file: ``site.toml``.
        federation: only this one of its federations; None for all.
        limit_s: seconds for the rehearsal of each.
        now: this machine's time; the clock's if absent.

    Returns:
        What was found; nothing is raised for a fault of the site.
    """
    started, found = time.monotonic(), Checkup()
    with found.noting():
        site, base = load_site(file), file.resolve().parent
        found.site = site.name
        policy = None
        with found.noting():
            policy = site_policy(site, base)
        examined = Examined(site, base, policy, now or datetime.now(UTC))
        check_machine(examined, found)
        check_identity(examined, found)
        check_reach(examined, found)
        use_threads(site.compute.threads)
        for path in _wanted(examined, federation, found):
            with found.noting():
                _check_federation(examined, path, found, limit_s)
    found.seconds = time.monotonic() - started
    return found


def _wanted(examined: Examined, federation: Path | None, found: Checkup) -> list[Path]:
    """The federation files to look at."""
    files = [examined.path(name) for name in examined.site.federations]
    if federation is not None:
        files = [path for path in files if path == federation.resolve()]
    if not files:
        found.fault(
            "no_federations",
            "federations in the site's file names no such federation file; write it there",
        )
    return files


def _check_federation(examined: Examined, path: Path, found: Checkup, limit_s: float) -> None:
    spec, site = load_federation(path), examined.site
    if site.name not in spec.federation.sites:
        found.fault(
            "not_in_roster",
            f"{path}: federation.sites does not have {site.name!r}; correct `name`, or ask the coordinator",
        )
        return
    before = found.num_faults
    model = _model(examined, spec, found)
    data = examined.path(site.data.path)
    if not examined.may_see(data):
        found.note(
            "data_not_seen",
            f"{data}: this user may not read it, which is right for the node's; run this again as the "
            "worker's user to have the data checked and a round rehearsed",
        )
        return
    examples = check_data(examined, spec, found)
    if examples is None or model is None or examined.policy is None or found.num_faults > before:
        return
    if _is_up(examined):
        found.note(
            "worker_is_up",
            "a worker is running; the rehearsal takes memory and processors beside it",
        )
    free = available_mib()
    rehearse(examined, model, len(examples.train), limit_s, found)
    peak = found.measured.get(f"{spec.federation.name}.peak_mib", 0.0)
    if free and peak > _MUCH * free and site.compute.device == "cpu":
        found.fault(
            "memory",
            f"training takes {peak:.0f} MiB, and {free:.0f} MiB were free; free some, or write a smaller "
            "compute.micro_batch",
        )


def _model(examined: Examined, spec: FederationSpec, found: Checkup) -> SharedModel | None:
    """A federation's model, held against disks and policy; None if it cannot be made here."""
    with found.noting():
        model = SharedModel(spec)
        check_room(examined, model, found)
        _check_policy(examined, model, found)
        return model
    return None


def _check_policy(examined: Examined, model: SharedModel, found: Checkup) -> None:
    """Questions that the policy would refuse, whoever asks; outside its hours is no fault."""
    if examined.policy is None:
        return
    codes_of = broken_rules(
        examined.policy, model, examined.site, examined.base, examined.moment.astimezone()
    )
    for kind, codes in codes_of.items():
        for code in codes:
            if code not in {"policy_hours", "policy_coordinator"}:
                found.fault(
                    code,
                    f"{model.federation.federation.name}: the policy refuses {kind!r}; tighten the "
                    "federation, or allow it in policy.toml (`wardround explain policy`)",
                )


def _is_up(examined: Examined) -> bool:
    client = AirlockClient(examined.path(examined.site.worker.socket))
    try:
        client.status()
    except AirlockUnavailable:
        return False
    finally:
        client.close()
    return True
