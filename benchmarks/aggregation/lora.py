"""The LoRA product merge against the dense SVD, in a process of its own; prints JSON."""

import argparse
import json
from typing import Any

import torch

from benchmarks.aggregation.mean import processor_seconds
from wardround_server.aggregation.lora_product import best_factors

WIDTH, RANK, SITES = 768, 8, 10


def terms(place: int) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """(weight, B, A) of every site for one matrix: a common part and a site's own."""
    draw = torch.Generator().manual_seed(place)
    common_b = torch.randn(WIDTH, RANK, generator=draw)
    common_a = torch.randn(RANK, WIDTH, generator=draw)
    return [
        (
            1 / SITES,
            common_b + 0.3 * torch.randn(WIDTH, RANK, generator=draw),
            common_a + 0.3 * torch.randn(RANK, WIDTH, generator=draw),
        )
        for _ in range(SITES)
    ]


def dense(sites: list[tuple[float, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """FlexLoRA's way: form the mean product and decompose it; the rank-r product."""
    mean = torch.zeros(WIDTH, WIDTH)
    for weight, b, a in sites:
        mean.addmm_(b, a, alpha=weight)
    u, s, vh = torch.linalg.svd(mean, full_matrices=False)
    return (u[:, :RANK] * s[:RANK]) @ vh[:RANK]


def factor_mean(sites: list[tuple[float, torch.Tensor, torch.Tensor]]) -> None:
    """FedIT's way: the mean of each factor apart."""
    b, a = torch.zeros(WIDTH, RANK), torch.zeros(RANK, WIDTH)
    for weight, one_b, one_a in sites:
        b.add_(one_b, alpha=weight)
        a.add_(one_a, alpha=weight)


def measure(matrices: int, repetitions: int) -> dict[str, Any]:
    """Processor seconds for all matrices, each way in turn, and the largest relative error."""
    inputs = [terms(place) for place in range(matrices)]
    start = torch.zeros(RANK, WIDTH)
    ways = {
        "product": lambda: [best_factors(each, start) for each in inputs],
        "dense": lambda: [dense(each) for each in inputs],
        "factors": lambda: [factor_mean(each) for each in inputs],
    }
    error = 0.0
    for each in inputs:
        b, a = best_factors(each, start)
        wanted = dense(each)
        error = max(error, float((b @ a - wanted).norm() / wanted.norm()))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, work in ways.items():
            seconds[way].append(processor_seconds(work))
    return {"seconds": seconds, "error": error, "matrices": matrices}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=3)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(wanted.matrices, wanted.repetitions)))


if __name__ == "__main__":
    main()
