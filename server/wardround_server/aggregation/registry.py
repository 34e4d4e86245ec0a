"""The rule that a federation file names."""

from collections.abc import Mapping

from wardround_common.spec import federation as file
from wardround_common.types import SiteId
from wardround_common.wire.layout import Layout
from wardround_server.aggregation.base import Aggregation
from wardround_server.aggregation.fedadagrad import FedAdagrad
from wardround_server.aggregation.fedadam import FedAdam
from wardround_server.aggregation.fedavg import FedAvg
from wardround_server.aggregation.fedavgm import FedAvgM
from wardround_server.aggregation.fedyogi import FedYogi
from wardround_server.aggregation.lora_product import LoraProduct


def aggregation_for(
    spec: file.FederationSpec, layout: Layout, ranks: Mapping[SiteId, int] | None = None
) -> Aggregation:
    """One round's aggregation of updates of a layout.

    FedProx differs from FedAvg in the sites' loss only, so both rules aggregate the same way.

    Args:
        spec: the federation file.
        layout: what the round trains, at the federation's rank.
        ranks: site -> LoRA rank where it is smaller than the federation's.
    """
    rule, size = spec.aggregation, layout.num_values
    if isinstance(spec.tuning, file.Lora) and spec.tuning.merge == "product":
        return LoraProduct(layout, ranks or {})
    if isinstance(rule, file.FedAvgM):
        return FedAvgM(size, rule)
    if isinstance(rule, file.FedAdam):
        return FedAdam(size, rule)
    if isinstance(rule, file.FedYogi):
        return FedYogi(size, rule)
    if isinstance(rule, file.FedAdagrad):
        return FedAdagrad(size, rule)
    return FedAvg(size)
