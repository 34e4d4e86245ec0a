"""The rule that a federation file names."""

from wardround_common.spec.federation import FederationSpec
from wardround_server.aggregation.base import Aggregation
from wardround_server.aggregation.fedavg import FedAvg


def aggregation_for(spec: FederationSpec, size: int) -> Aggregation:
    """One round's aggregation of updates with ``size`` values.

    FedProx differs from FedAvg in the sites' loss only, so both rules aggregate the same way.
    """
    return FedAvg(
        size,
        max_sites=len(spec.federation.sites),
        update_norm=spec.limits.update_norm,
        max_subjects=spec.limits.subjects,
    )
