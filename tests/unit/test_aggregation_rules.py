"""Every rule of aggregation moves the state as Flower's own strategy does."""

import json
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
from pydantic import ValidationError

from tests.support import StubModel, federation
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import SiteId, TensorSpec
from wardround_common.wire.layout import Layout
from wardround_server.aggregation.registry import aggregation_for

SIZE = 300
LAYOUT = Layout((TensorSpec("w", "float32", (SIZE,)),))
RULES: dict[str, tuple[dict[str, Any], Any]] = {
    "fedavg": ({}, FedAvg()),
    "fedprox": ({"mu": 0.1}, FedProx(proximal_mu=0.1)),
    "fedavgm": (
        {"learning_rate": 0.7, "momentum": 0.9},
        FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
    ),
    "fedadam": (
        {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
        FedAdam(eta=0.05, beta_1=0.8, beta_2=0.95, tau=0.01),
    ),
    "fedyogi": (
        {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
        FedYogi(eta=0.05, beta_1=0.8, beta_2=0.95, tau=0.01),
    ),
    "fedadagrad": ({"learning_rate": 0.05, "tau": 0.01}, FedAdagrad(eta=0.05, tau=0.01)),
}


def _theirs(strategy: Any, round_: int, state: np.ndarray, updates: list[np.ndarray]) -> np.ndarray:
    if isinstance(strategy, FedAvgM):  # what configure_train does to the two kinds of optimizer
        strategy.current_arrays = strategy.current_arrays or _record(state)
    else:
        strategy.current_arrays = {"w": state}
    replies = []
    for place, update in enumerate(updates):
        metrics = MetricRecord({"num-examples": 10 * (place + 1)})
        content = RecordDict({"arrays": _record(state + update), "metrics": metrics})
        reply = Mock(spec=Message, content=content)
        reply.has_error.return_value = False
        replies.append(reply)
    found: np.ndarray = strategy.aggregate_train(round_, replies)[0]["w"].numpy()
    return found


def _record(values: np.ndarray) -> ArrayRecord:
    return ArrayRecord({"w": Array.from_numpy_ndarray(values)})


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_moves_the_state_as_flowers_strategy_does(rule: str) -> None:
    options, strategy = RULES[rule]
    spec = federation(aggregation={"rule": rule, **options})
    rng = np.random.Generator(np.random.PCG64(1))
    start = rng.normal(size=SIZE).astype(np.float32)
    ours, memory = start, np.zeros(0, dtype=np.float32)
    theirs = start
    for round_ in range(1, 5):
        updates = [(rng.normal(size=SIZE) * 0.1).astype(np.float32) for _ in range(3)]
        one = aggregation_for(spec, LAYOUT)
        for place, update in enumerate(updates):
            one.fold(SiteId(f"s{place}"), update, 10 * (place + 1))
        remembered = memory.copy()
        ours, following = one.finish(ours, memory)
        np.testing.assert_array_equal(memory, remembered, err_msg="the stored memory was changed")
        memory = following
        theirs = _theirs(strategy, round_, theirs, updates)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert np.abs(ours - start).max() > 0.01, "something moved"


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_without_its_memory_a_server_optimizer_moves_otherwise(rule: str) -> None:
    """The failing twin of handing the memory from round to round."""
    spec = federation(aggregation={"rule": rule})
    update = np.full(SIZE, 0.1, dtype=np.float32)
    state, nothing = np.zeros(SIZE, dtype=np.float32), np.zeros(0, dtype=np.float32)

    def moved(memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        one = aggregation_for(spec, LAYOUT)
        one.fold(SiteId("a"), update, 1)
        return one.finish(state, memory)

    _, memory = moved(nothing)
    assert not np.allclose(moved(memory)[0], moved(nothing)[0])


def test_the_file_names_the_rule() -> None:
    layout = StubModel(federation()).layout(1)
    for rule in RULES:
        found = aggregation_for(federation(aggregation={"rule": rule}), layout)
        assert type(found).__name__.lower() == ("fedavg" if rule == "fedprox" else rule)


def test_moments_of_a_set_that_changes_are_refused() -> None:
    tables = {
        "federation": {"name": "f", "sites": ["a"]},
        "data": {"modality": "image", "label": "label", "size": 32},
        "task": {"kind": "classification", "labels": ["no", "yes"]},
        "backbone": {"ref": "file:net#net", "sha256": "0" * 64},
        "tuning": {"method": "gradual", "unfreeze_at": [2]},
    }
    for rule, refused in (("fedavg", False), ("fedadam", True)):
        data = json.dumps({**tables, "aggregation": {"rule": rule}})
        if refused:
            with pytest.raises(ValidationError, match="remembers moments of each trained value"):
                FederationSpec.model_validate_json(data)
        else:
            assert FederationSpec.model_validate_json(data).aggregation.rule == rule
