"""The rule that a federation file names."""

from wardround_common.spec.federation import FederationSpec
from wardround_common.wire.layout import Layout
from wardround_server.aggregation.base import Aggregation
from wardround_server.aggregation.fedavg import FedAvg


def aggregation_for(spec: FederationSpec, layout: Layout) -> Aggregation:
    """One round's aggregation of updates of a layout.

    FedProx differs from FedAvg in the sites' loss only, so both rules aggregate the same way.
    """
    del spec
    return FedAvg(layout.num_values)
