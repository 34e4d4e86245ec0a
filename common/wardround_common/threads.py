"""PyTorch's threads and determinism, alike in every process of a federation."""

import os

import torch


def use_threads(threads: int | None) -> None:
    """As many threads as are asked for; all processors where nothing is.

    The number is part of the result: it decides how sums are split.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    # The same switch as use_deterministic_algorithms(warn_only=True), which imports a compiler that
    # is not used here; that takes seconds.
    torch.set_deterministic_debug_mode("warn")
