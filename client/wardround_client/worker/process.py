"""The site worker as a process: no network, one socket, from the first federation to the last.

It looks for a network and refuses one, gives up the means to make one, and only then opens the
airlock; data is read when the first question comes. It keeps backbone, data and caches until it is
told to end. Then transfers under way have 5 s; what is computed is stopped, and the node, which sees
the worker gone and no failure, asks again when it is back.
"""

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wardround_client.airlock.server import AirlockServer
from wardround_client.airlock.service import AirlockService
from wardround_client.policy.control import SiteControl
from wardround_client.policy.papers import site_policy
from wardround_client.worker.desk import SiteDesk
from wardround_client.worker.failures import Failures
from wardround_client.worker.network import require_no_network
from wardround_client.worker.seccomp import give_up_sockets
from wardround_common.durable import make_folder
from wardround_common.errors import ConfigError
from wardround_common.log import log_event, set_log_stream
from wardround_common.memory import keep_freed_memory
from wardround_common.spec.load import load_site
from wardround_common.spec.site import SiteSpec, resolve
from wardround_common.threads import use_threads
from wardround_common.types import SiteId

FAILURES: Final = "failures.txt"
_GRACE_S = 5.0


def run_worker(file: Path, *, socket: Path | None, allow_network: bool) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        file: ``site.toml``.
        socket: instead of the file's.
        allow_network: start although there is a network.

    Raises:
        ConfigError: a file is wrong, there is a network that was not allowed, or another worker
            has the same state.
        IntegrityError: the audit log is damaged.
    """
    ended = _signals()
    set_log_stream(sys.stderr)
    os.umask(0o077)  # caches and answers are as private as the data
    site, base = _site(file)
    require_no_network(allowed=allow_network or site.worker.network == "allow")
    give_up_sockets(loopback=site.compute.devices > 1)
    use_threads(site.compute.threads)
    keep_freed_memory()
    state = resolve(base, site.worker.state)
    with _alone(state):
        control = SiteControl(
            SiteId(site.name),
            site_policy(site, base),
            state,
            audit_years=site.worker.audit_years,
        )
        desk = SiteDesk(site, base, control)
        service = AirlockService(desk, Failures(state / FAILURES).note)
        server = AirlockServer(service, socket or resolve(base, site.worker.socket))
        log_event("worker_started", site=site.name, num_federations=len(desk.federations.digests))
        desk.warm_up()
        ended.wait()
        desk.send_away()
        server.close(_GRACE_S)
        desk.close()
    log_event("worker_ended", site=site.name)


def _signals() -> threading.Event:
    """Set by SIGTERM and SIGINT; from the first moment on, so that none is lost."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _site(file: Path) -> tuple[SiteSpec, Path]:
    site = load_site(file)
    if not site.federations:
        raise ConfigError(
            f"{file}: federations is empty; name the federation files that {site.name!r} takes "
            'part in: federations = ["federation.toml"]',
            code="no_federations",
        )
    return site, file.resolve().parent


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the state folder; the kernel lets go of it with the process, however that ends."""
    make_folder(state)
    with (state / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{state}: another worker is running with this state; end it first",
                code="worker_running",
            ) from None
        yield
