"""The mean of LoRA products: as the dense decomposition gives it, never by forming the products."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wardround_common.spec.federation import FederationSpec
from wardround_common.tuning.lora_factors import A, B, at_rank, layout_at_rank, zero_beyond_rank
from wardround_common.types import SiteId, TensorSpec
from wardround_common.wire.layout import Layout, pack, unpack
from wardround_server.aggregation.fedavg import FedAvg
from wardround_server.aggregation.lora_product import LoraProduct, best_factors

NOTHING = np.zeros(0, dtype=np.float32)
Term = tuple[float, torch.Tensor, torch.Tensor]


def _terms(
    seed: int, ranks: list[int], d_out: int, d_in: int, *, one_a: bool = False
) -> list[Term]:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(max(ranks), d_in, generator=draw)
    return [
        (
            (place + 1) / sum(range(1, len(ranks) + 1)),
            torch.randn(d_out, rank, generator=draw),
            a[:rank] if one_a else torch.randn(rank, d_in, generator=draw),
        )
        for place, rank in enumerate(ranks)
    ]


def _product(terms: list[Term]) -> torch.Tensor:
    return torch.stack([w * b.double() @ a.double() for w, b, a in terms]).sum(0)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=7),
    d_out=st.integers(1, 24),
    d_in=st.integers(1, 24),
)
def test_the_factors_are_the_best_ones_of_their_rank(
    seed: int, ranks: list[int], d_out: int, d_in: int
) -> None:
    terms = _terms(seed, ranks, d_out, d_in)
    rank, mean = max(ranks), _product(terms)
    b, a = best_factors(terms, torch.zeros(rank, d_in))
    u, s, vh = torch.linalg.svd(mean, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    size, found = float(mean.norm()), b.double() @ a.double()
    assert float((mean - found).norm()) <= float((mean - best).norm()) + 1e-4 * size
    after = float(s[rank]) if rank < s.numel() else 0.0
    if float(s[min(rank, s.numel()) - 1]) - after > 0.02 * float(s[0]):  # the best one is unique
        assert float((found - best).norm()) <= 1e-4 * float(best.norm())
    for smaller in range(1, rank):
        left = float((mean - b[:, :smaller].double() @ a[:smaller].double()).norm())
        assert left <= float(s[smaller:].norm()) + 1e-4 * size, "leading components are best too"


def test_the_mean_of_factors_is_not_the_mean_of_products() -> None:
    """The failing twin: FedIT's mean of each factor misses what the product merge keeps."""
    terms = _terms(1, [3, 3], 12, 10)
    rank = 6  # holds both products together
    mean = _product(terms)
    b, a = best_factors(terms, torch.zeros(rank, 10))
    assert float((b.double() @ a.double() - mean).norm() / mean.norm()) < 1e-5
    mean_b = sum(w * b for w, b, _ in terms)
    mean_a = sum(w * a for w, _, a in terms)
    assert isinstance(mean_b, torch.Tensor)
    assert float((mean_b @ mean_a - mean).norm() / mean.norm()) > 0.1


def test_with_one_frozen_a_the_plain_mean_is_exact_and_the_product_merge_agrees() -> None:
    terms = _terms(2, [4, 4, 4], 12, 10, one_a=True)
    mean_b = torch.stack([w * b for w, b, _ in terms]).sum(0)
    mean = _product(terms).float()
    torch.testing.assert_close(mean_b @ terms[0][2], mean, rtol=1e-4, atol=1e-5)
    b, a = best_factors(terms, torch.zeros(4, 10))
    torch.testing.assert_close(b @ a, mean, rtol=1e-4, atol=1e-5)


def test_a_component_without_weight_can_still_learn() -> None:
    start = torch.randn(4, 10, generator=torch.Generator().manual_seed(3))
    b, a = best_factors([(1.0, torch.zeros(12, 4), start)], start)
    assert not b.any()
    torch.testing.assert_close(a, start, rtol=0, atol=0)


LAYOUT = Layout(
    (
        TensorSpec("backbone.q" + A, "float32", (4, 10)),
        TensorSpec("backbone.q" + B, "float32", (12, 4)),
        TensorSpec("head.weight", "float32", (2, 3)),
    )
)


def test_sites_of_different_ranks_meet_in_one_state_and_the_head_gets_the_mean() -> None:
    rng = np.random.Generator(np.random.PCG64(4))
    state = rng.normal(size=LAYOUT.num_values).astype(np.float32)
    ranks = {SiteId("small"): 2}
    small = layout_at_rank(LAYOUT, 2)
    updates = {
        "small": rng.normal(size=small.num_values).astype(np.float32),
        "full": rng.normal(size=LAYOUT.num_values).astype(np.float32),
    }

    def merged() -> np.ndarray:
        rule = LoraProduct(LAYOUT, ranks)
        rule.fold(SiteId("small"), updates["small"].copy(), 1)
        rule.fold(SiteId("full"), updates["full"].copy(), 3)
        return rule.finish(state, NOTHING)[0]

    start = unpack(LAYOUT, state)
    changes = {"small": unpack(small, updates["small"]), "full": unpack(LAYOUT, updates["full"])}
    cut = at_rank(start, 2)
    name_a, name_b = "backbone.q" + A, "backbone.q" + B
    mean = 0.25 * (cut[name_b] + changes["small"][name_b]) @ (
        cut[name_a] + changes["small"][name_a]
    ) + 0.75 * (start[name_b] + changes["full"][name_b]) @ (start[name_a] + changes["full"][name_a])
    u, s, vh = torch.linalg.svd(mean)
    found = unpack(LAYOUT, merged())
    best = (u[:, :4] * s[:4]) @ vh[:4]
    torch.testing.assert_close(found[name_b] @ found[name_a], best, rtol=1e-4, atol=1e-4)
    head = 0.25 * changes["small"]["head.weight"] + 0.75 * changes["full"]["head.weight"]
    torch.testing.assert_close(found["head.weight"], start["head.weight"] + head)
    np.testing.assert_array_equal(merged(), merged())


def test_a_cut_state_has_zeros_where_the_rank_ends_and_packs_to_the_smaller_layout() -> None:
    state = unpack(LAYOUT, np.ones(LAYOUT.num_values, dtype=np.float32))
    cut = zero_beyond_rank(state, 3)
    assert [float(cut["backbone.q" + half].sum()) for half in (A, B)] == [30.0, 36.0]
    small = layout_at_rank(LAYOUT, 3)
    assert pack(small, at_rank(cut, 3)).sum() == small.num_values == 72
    assert float(state["backbone.q" + A].sum()) == 40.0, "the received state is not written to"


def test_the_mean_onto_a_state_has_the_bits_of_two_steps() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    size = (1 << 16) + 7
    state, *updates = (rng.normal(size=size).astype(np.float32) for _ in range(4))
    rule, total = FedAvg(size), np.zeros(size, dtype=np.float32)
    for place, update in enumerate(updates):
        rule.fold(SiteId(f"s{place}"), update, place + 2)
        total = torch.from_numpy(total).add(torch.from_numpy(update), alpha=place + 2).numpy()
    wanted = total / np.float32(9) + state
    np.testing.assert_array_equal(rule.finish(state, NOTHING)[0], wanted)


def _file(tuning: dict[str, Any], **tables: Any) -> FederationSpec:
    data = {
        "federation": {"name": "f", "sites": ["a", "b"]},
        "data": {"modality": "text", "label": "label", "text": "report"},
        "task": {"kind": "classification", "labels": ["no", "yes"]},
        "backbone": {"ref": "hf:net", "sha256": "0" * 64},
        "tuning": {"method": "lora", "rank": 4, **tuning},
        **tables,
    }
    return FederationSpec.model_validate_json(json.dumps(data))


def _ranks(**ranks: int) -> dict[str, Any]:
    return {"dataset": "d", "partition": {"kind": "iid"}, "lora_ranks": ranks}


@pytest.mark.parametrize(
    ("tuning", "tables", "why"),
    [
        ({"merge": "product", "train": "b"}, {}, "already has an exact mean"),
        ({"merge": "product"}, {"aggregation": {"rule": "fedadam"}}, "moments of the old ones"),
        ({"train": "alternate"}, {"aggregation": {"rule": "fedavgm"}}, "other values each round"),
        ({}, {"simulation": _ranks(a=2)}, 'merge = "product"'),
        ({"merge": "product"}, {"simulation": _ranks(c=2)}, "not in the roster"),
        ({"merge": "product"}, {"simulation": _ranks(a=5)}, "1 to tuning.rank = 4"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(
    tuning: dict[str, Any], tables: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        _file(tuning, **tables)


@pytest.mark.parametrize("rule", ["fedavg", "fedprox"])
def test_the_product_merge_goes_with_fedavg_and_fedprox(rule: str) -> None:
    spec = _file({"merge": "product"}, aggregation={"rule": rule}, simulation=_ranks(a=2))
    assert spec.tuning.method == "lora"
