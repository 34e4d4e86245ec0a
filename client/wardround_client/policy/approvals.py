"""Runs that somebody at this hospital has looked at and approved, or that wait for it.

A run that needs approval is refused at its first question; what it asks for is written down, for its
operator to read. Approving is writing a file beside it: ``wardround site approve``.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wardround_common.durable import make_folder, replace_file
from wardround_common.errors import ConfigError
from wardround_common.spec.federation import FederationSpec
from wardround_common.wire.step import StepManifest

_ASKED, _APPROVED = ".asked.json", ".approved.json"


@dataclass(frozen=True, slots=True)
class Asked:
    """A run that has asked this site something.

    Attributes:
        run: its identifier.
        approved: whether it may go on.
        request: what it asks for, as :func:`request_of` has it.
    """

    run: str
    approved: bool
    request: dict[str, Any]


class Approvals:
    """Approvals on disk: the worker reads them, its operator writes them.

    Args:
        folder: in the worker's state; made if absent, for its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def is_approved(self, run: str, spec_sha256: str) -> bool:
        """Whether a run of this very federation file was approved."""
        try:
            found = json.loads((self._folder / f"{run}{_APPROVED}").read_bytes())
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(found, dict) and found.get("spec_sha256") == spec_sha256

    def ask(self, manifest: StepManifest, federation: FederationSpec) -> None:
        """Write down what a run asks for, once."""
        path = self._folder / f"{manifest.run}{_ASKED}"
        if not path.exists():
            make_folder(self._folder)
            replace_file(path, json.dumps(request_of(manifest, federation), indent=1).encode())

    def approve(self, run: str) -> Asked:
        """Let a run go on.

        Raises:
            ConfigError: no such run has asked (``run_unknown``).
        """
        asked = next((each for each in self.asked() if each.run == run), None)
        if asked is None:
            raise ConfigError(
                f"{run}: no such run has asked this site; without RUN those that have are listed",
                code="run_unknown",
            )
        at = datetime.now(UTC).isoformat(timespec="seconds")
        approval = {"at": at, "spec_sha256": asked.request["spec_sha256"]}
        replace_file(self._folder / f"{run}{_APPROVED}", json.dumps(approval).encode())
        return Asked(run, approved=True, request=asked.request)

    def revoke(self, run: str) -> bool:
        """Take an approval back; whether there was one."""
        path = self._folder / f"{run}{_APPROVED}"
        there = path.exists()
        path.unlink(missing_ok=True)
        return there

    def asked(self) -> list[Asked]:
        """All runs that have asked, the newest last."""
        paths = sorted(self._folder.glob(f"*{_ASKED}"), key=lambda path: path.stat().st_mtime_ns)
        found = []
        for path in paths:
            run, request = path.name.removesuffix(_ASKED), json.loads(path.read_bytes())
            found.append(Asked(run, self.is_approved(run, request["spec_sha256"]), request))
        return found


def request_of(manifest: StepManifest, federation: FederationSpec) -> dict[str, Any]:
    """What a run asks for, for a person to read."""
    return {
        "federation": federation.federation.name,
        "spec_sha256": manifest.spec_sha256,
        "sites": list(manifest.sites),
        "task": federation.task.kind,
        "backbone": federation.backbone.ref,
        "backbone_sha256": manifest.backbone_sha256,
        "tuning": federation.tuning.method,
        "rounds": federation.rounds.count,
        "local_epochs": federation.training.local_epochs,
        "exact_head": federation.exact_head.enabled,
        "metric": federation.metric,
        "update_norm": manifest.update_norm,
    }
