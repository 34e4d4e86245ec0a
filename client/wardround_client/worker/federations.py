"""The federations that a site takes part in, and a worker for each: made when it is first asked."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from wardround_client.data.load import load_site
from wardround_client.training.execution import usable_device
from wardround_client.worker.error_feedback import ErrorFeedback
from wardround_client.worker.worker import SiteWorker
from wardround_common.errors import ConfigError, WireError
from wardround_common.shared_model import SharedModel
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.load import load_federation
from wardround_common.spec.site import SiteSpec, resolve
from wardround_common.types import Digest, SiteId


class SiteFederations:
    """One site's federations, found by the digest of their files.

    Args:
        site: the site file.
        base: its folder.
        feedback: what coding lost of the site's updates in a run.

    Raises:
        ConfigError: a federation file is wrong, or this site is not in its roster.
    """

    def __init__(
        self, site: SiteSpec, base: Path, feedback: Callable[[str], ErrorFeedback]
    ) -> None:
        self._site = site
        self._base = base
        self._feedback = feedback
        self._specs = dict(_loaded(site, base, path) for path in site.federations)
        self._workers: dict[Digest, SiteWorker] = {}

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Digests of the files, in order."""
        return tuple(sorted(self._specs))

    def spec(self, spec_sha256: str) -> FederationSpec:
        """The file of a digest.

        Raises:
            WireError: ``site.toml`` names no such file.
        """
        self.made(spec_sha256)
        return self._specs[Digest(spec_sha256)]

    def made(self, spec_sha256: str) -> SiteWorker | None:
        """The worker for a federation; None if it was not asked for before.

        Raises:
            WireError: ``site.toml`` names no such file.
        """
        digest = Digest(spec_sha256)
        if digest not in self._specs:
            raise WireError(
                "the question is about a federation file that site.toml does not name",
                code="other_federation_file",
            )
        return self._workers.get(digest)

    def worker(self, spec_sha256: str) -> SiteWorker:
        """The worker for a federation; keeps backbone, data and caches from then on.

        Raises:
            WireError: ``site.toml`` names no such file.
            BackboneError, ConfigError: this site's own files are not in order.
        """
        worker = self.made(spec_sha256)
        if worker is None:
            digest = Digest(spec_sha256)
            worker = self._workers[digest] = self._make(self._specs[digest])
        return worker

    def _make(self, spec: FederationSpec) -> SiteWorker:
        compute = self._site.compute
        device = usable_device(compute)
        shared = SharedModel(spec)
        shared.move_to(device)
        return SiteWorker(
            SiteId(self._site.name),
            shared,
            partial(load_site, spec, self._site, self._base),
            resolve(self._base, compute.cache),
            device,
            feedback=self._feedback if spec.exchange.error_feedback else None,
            lora_rank=compute.lora_rank,
            lending=compute,
            cache_gib=compute.cache_gib,
        )


def _loaded(site: SiteSpec, base: Path, path: str) -> tuple[Digest, FederationSpec]:
    file = resolve(base, path)
    spec = load_federation(file)
    if site.name not in spec.federation.sites:
        raise ConfigError(
            f"{file}: federation.sites does not have {site.name!r}; correct the name in site.toml, "
            f"which is one of {', '.join(spec.federation.sites)}, or ask the coordinator",
            code="not_in_roster",
        )
    return spec.digest(), spec
