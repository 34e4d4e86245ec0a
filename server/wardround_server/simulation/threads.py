"""PyTorch's threads and its memory, the same in every process of a simulation."""

from wardround_common.memory import keep_freed_memory
from wardround_common.spec.federation import FederationSpec
from wardround_common.threads import use_threads


def fix_threads(spec: FederationSpec, instead: int | None = None) -> None:
    """As many threads as the file says; all processors where it says nothing.

    Args:
        spec: the federation.
        instead: this many; a process that will fork takes one: OpenMP's do not survive a fork.
    """
    use_threads(instead or (spec.simulation.threads if spec.simulation is not None else None))
    keep_freed_memory()
