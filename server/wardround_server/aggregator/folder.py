"""The aggregator's folder: one place for its file, keys, sites, runs and state.

::

    aggregator.toml   how it runs
    pki/              the consortium's authority and its revocation list, the server's and the
                      operator's certificate, and the key that signs manifests
    secrets/          of the SuperExec, and the operator's token
    sites/            one file for each site that is let in; without it, a site is not
    invitations/      one file for each token that was made
    revoked/          one file for each certificate that counts no more
    audit/            who was invited, let in, given new keys, revoked; which runs ended, and how
    runs/             one folder for each run
    state/            the SuperLink's database, locks, status
    logs/             what the processes print

Keys and secrets are readable by their owner only.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wardround_common.crypto.certificates import Issued
from wardround_common.durable import write_file
from wardround_common.errors import ConfigError
from wardround_common.spec.aggregator import AggregatorSpec
from wardround_common.spec.load import load_aggregator

FOLDERS = ("pki", "secrets", "sites", "invitations", "revoked", "runs", "state", "logs")
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class AggregatorFolder:
    """Paths in the folder.

    Attributes:
        path: the folder, absolute.
    """

    path: Path

    @property
    def file(self) -> Path:
        """How it runs."""
        return self.path / "aggregator.toml"

    @property
    def authority(self) -> Path:
        """The consortium's certificate."""
        return self.path / "pki" / "ca.pem"

    @property
    def coordinator_key(self) -> Path:
        """Signs every manifest; sites have its public half in their policy."""
        return self.path / "pki" / "coordinator.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate; its key is beside it."""
        return self.path / "pki" / "server.pem"

    @property
    def operator(self) -> Path:
        """The operator's client certificate; its key is beside it."""
        return self.path / "pki" / "operator.pem"

    @property
    def superexec_secret(self) -> Path:
        """Known to SuperLink and SuperExec."""
        return self.path / "secrets" / "superexec"

    @property
    def operator_token(self) -> Path:
        """Lets an operator's program in without a certificate."""
        return self.path / "secrets" / "operator-token"

    @property
    def revocations(self) -> Path:
        """The list of certificates that count no more."""
        return self.path / "pki" / "revoked.crl"

    @property
    def sites(self) -> Path:
        """Sites that are let in."""
        return self.path / "sites"

    @property
    def invitations(self) -> Path:
        """Tokens that were made."""
        return self.path / "invitations"

    @property
    def revoked(self) -> Path:
        """Certificates that count no more."""
        return self.path / "revoked"

    @property
    def audit(self) -> Path:
        """The log of sites and runs."""
        return self.path / "audit"

    @property
    def runs(self) -> Path:
        """Runs."""
        return self.path / "runs"

    @property
    def state(self) -> Path:
        """Database, locks, status."""
        return self.path / "state"

    @property
    def logs(self) -> Path:
        """What the processes print."""
        return self.path / "logs"

    @property
    def up_lock(self) -> Path:
        """Held by the process that keeps the others running."""
        return self.state / "up.lock"

    def load(self) -> AggregatorSpec:
        """How it runs.

        Raises:
            ConfigError: this is no aggregator's folder, or its file is wrong.
        """
        if not self.file.exists():
            raise ConfigError(
                f"{self.path} is not an aggregator's folder; make one by `wardround aggregator "
                f"init {self.path} --host NAME`",
                code="aggregator_missing",
            )
        return load_aggregator(self.file)

    def read_authority(self) -> Issued:
        """The consortium's authority, with its key.

        Raises:
            ConfigError: its files cannot be read.
        """
        return self._issued(self.authority)

    def _issued(self, certificate: Path) -> Issued:
        try:
            return Issued(certificate.read_bytes(), key_beside(certificate).read_bytes())
        except OSError as error:
            raise ConfigError(
                f"{certificate} or its key cannot be read ({error.strerror})",
                code="aggregator_pki",
            ) from None


def key_beside(certificate: Path) -> Path:
    """Where the key of a certificate is."""
    return certificate.with_suffix(".key")


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    before = os.umask(0o077)
    try:
        write_file(path, data)
    finally:
        os.umask(before)


def write_issued(certificate: Path, issued: Issued) -> None:
    """Write a certificate, and its key beside it."""
    write_private(key_beside(certificate), issued.key)
    write_file(certificate, issued.certificate)


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock now."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def held(lock: Path, otherwise: ConfigError, patience_s: float = 0.5) -> Iterator[None]:
    """Hold a lock; the kernel lets go of it with the process, however that ends.

    Args:
        lock: the file.
        otherwise: raised if somebody else holds it.
        patience_s: for how long to try. Who only looks whether it is held holds it for a moment.

    Raises:
        ConfigError: ``otherwise``.
    """
    with lock.open("ab") as file:
        if not _taken(file.fileno(), time.monotonic() + patience_s):
            raise otherwise
        yield


def _taken(descriptor: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_PAUSE_S)
        else:
            return True
