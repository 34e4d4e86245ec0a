"""PyTorch's threads, determinism and memory, the same in every process of a simulation."""

import os

import torch

from wardround_common.memory import keep_freed_memory
from wardround_common.spec.federation import FederationSpec


def fix_threads(spec: FederationSpec, instead: int | None = None) -> None:
    """As many threads as the file says; all processors where it says nothing.

    Args:
        spec: the federation.
        instead: this many; a process that will fork takes one: OpenMP's do not survive a fork.
    """
    threads = spec.simulation.threads if spec.simulation is not None else None
    torch.set_num_threads(instead or threads or os.cpu_count() or 1)
    # The same switch as use_deterministic_algorithms(warn_only=True), which imports a compiler that
    # is not used here; that takes seconds.
    torch.set_deterministic_debug_mode("warn")
    keep_freed_memory()
