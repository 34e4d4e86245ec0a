"""The rule that a federation file names."""

from wardround_common.spec import federation as file
from wardround_common.wire.layout import Layout
from wardround_server.aggregation.base import Aggregation
from wardround_server.aggregation.fedadagrad import FedAdagrad
from wardround_server.aggregation.fedadam import FedAdam
from wardround_server.aggregation.fedavg import FedAvg
from wardround_server.aggregation.fedavgm import FedAvgM
from wardround_server.aggregation.fedyogi import FedYogi


def aggregation_for(spec: file.FederationSpec, layout: Layout) -> Aggregation:
    """One round's aggregation of updates of a layout.

    FedProx differs from FedAvg in the sites' loss only, so both rules aggregate the same way.
    """
    rule, size = spec.aggregation, layout.num_values
    if isinstance(rule, file.FedAvgM):
        return FedAvgM(size, rule)
    if isinstance(rule, file.FedAdam):
        return FedAdam(size, rule)
    if isinstance(rule, file.FedYogi):
        return FedYogi(size, rule)
    if isinstance(rule, file.FedAdagrad):
        return FedAdagrad(size, rule)
    return FedAvg(size)
