"""The seam between the simulator and the site side, which may not import each other.

The simulator finds the site side through the entry point group ``wardround.sites``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wardround_common.errors import ConfigError
from wardround_common.evaluation.scores import MetricValue, ModelScore
from wardround_common.spec.federation import FederationSpec
from wardround_common.wire.step import TableMoments

FailureHook = Callable[[str, Exception], None]
GROUP = "wardround.sites"


@dataclass(frozen=True, slots=True)
class PooledScores:
    """What only a simulation can measure, because it has all sites' data.

    Attributes:
        sites: the pooled model on each site's held-out subjects; empty if not trained.
        pooled: the pooled model on the held-out subjects of all sites; None if not trained.
        federated: the federated model on them.
        exact_head: the one-round exact head on them; None if not computed.
        difference: federated minus pooled on them, paired.
    """

    sites: Mapping[str, ModelScore]
    pooled: ModelScore | None
    federated: ModelScore
    exact_head: ModelScore | None
    difference: MetricValue | None


class SimulatedSites(Protocol):
    """All sites of a federation, played by this process."""

    @property
    def app(self) -> Any:
        """The ClientApp that answers for every site."""
        ...

    def make_durable(self) -> None:
        """Make what sites remember durable; called before the journal of the run becomes so."""
        ...

    def pooled(
        self,
        state: npt.NDArray[np.float32],
        moments: TableMoments | None,
        *,
        rounds: int,
        train: bool,
    ) -> PooledScores:
        """Score on the held-out subjects of all sites together.

        Args:
            state: packed like the state of a ``compare`` step.
            moments: the federation's standardisation.
            rounds: training rounds behind the federated model.
            train: whether to train the pooled reference too.
        """
        ...


class SitesFactory(Protocol):
    """Makes the simulated sites of a federation."""

    def __call__(
        self,
        federation: FederationSpec,
        *,
        base: Path,
        raw: Path | None,
        cache: Path,
        memory: Path,
        on_failure: FailureHook,
    ) -> SimulatedSites:
        """Make them.

        Args:
            federation: with a ``[simulation]`` table.
            base: folder of the federation file.
            raw: folder with local copies of public data; None for the default.
            cache: folder for cached features.
            memory: folder for what sites remember from round to round; of this run alone.
            on_failure: told what went wrong at a site; in a simulation the operator of all sites
                may know, whereas the reply carries a code only.

        Raises:
            DataError: the data is missing, corrupt or not as declared.
        """
        ...


def simulated_sites() -> SitesFactory:
    """The installed site side.

    Raises:
        ConfigError: it is not installed here.
    """
    for point in entry_points(group=GROUP, name="simulated"):
        factory: SitesFactory = point.load()
        return factory
    raise ConfigError(
        "the site side is not installed here; a simulation needs the whole wardround package",
        code="sites_not_installed",
    )
