"""What a node must not be able to do, and what there must be only one of.

1. The process with the network cannot open the data: it does not start where it could.
2. One node at a time works in a state folder; two would answer for each other.
"""

import fcntl
import os
from pathlib import Path

from wardround_common.errors import ConfigError
from wardround_common.spec.site import SiteSpec, resolve


def require_no_data(site: SiteSpec, base: Path) -> None:
    """Refuse to be a node where the site's data can be read.

    Args:
        site: the site file.
        base: its folder.

    Raises:
        ConfigError: this process could open the data, or what the worker derives from it
            (``data_readable``).
    """
    paths = [resolve(base, site.data.path), resolve(base, site.compute.cache)]
    paths.append(resolve(base, site.worker.state))
    for path in paths:
        if os.access(path, os.R_OK):
            raise ConfigError(
                f"{path}: this user can read it, and the node has a network: run the node as another "
                "user than the worker, and let only the worker's user read the data, its cache and "
                "its state (chmod 700); --same-user allows it, for trials on one machine",
                code="data_readable",
            )


def only_one(folder: Path) -> int:
    """Hold a state folder until the process ends; returns the descriptor that holds it.

    Raises:
        ConfigError: another node holds it (``node_running``).
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"{folder}: another node of this site is running", code="node_running"
        ) from None
    return descriptor
