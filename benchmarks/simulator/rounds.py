"""What is recorded of a simulation's rounds, whoever runs it."""

import time
from dataclasses import dataclass, field

from benchmarks import process_tree


@dataclass(slots=True)
class Round:
    """One round, from the moment it is set up to the moment the next one is.

    Attributes:
        wall_s: by the clock.
        cpu_s: processor time of the whole process tree.
        train_cpu_s: the part of it inside the sites' training loops.
    """

    wall_s: float
    cpu_s: float
    train_cpu_s: float


@dataclass(slots=True)
class RoundClock:
    """Stamps rounds. What it takes itself falls between two rounds.

    Attributes:
        rounds: the finished ones.
        first_round_s: from the clock's making to the end of the first round: the start-up.
        memory_mib: the largest memory of the process tree seen at the end of a round.
    """

    rounds: list[Round] = field(default_factory=list)
    first_round_s: float = 0.0
    memory_mib: float = 0.0
    _made: float = field(default_factory=time.monotonic)
    _open: tuple[float, float, float] | None = None
    _train_cpu_s: float = 0.0

    def begin(self) -> None:
        """A round begins; the one before it ends."""
        self.end()
        others_s = process_tree.descendants_cpu_seconds()
        self._open = (others_s, time.monotonic(), time.process_time())

    def end(self) -> None:
        """The open round ends, if there is one."""
        if self._open is None:
            return
        own_s, wall_s = time.process_time(), time.monotonic()
        cpu_s = own_s + process_tree.descendants_cpu_seconds()
        others_before_s, wall_before_s, own_before_s = self._open
        self.first_round_s = self.first_round_s or wall_s - self._made
        self.rounds.append(
            Round(
                wall_s=wall_s - wall_before_s,
                cpu_s=cpu_s - own_before_s - others_before_s,
                train_cpu_s=self._train_cpu_s,
            )
        )
        self.memory_mib = max(self.memory_mib, process_tree.memory_mib())
        self._open, self._train_cpu_s = None, 0.0

    def trained(self, cpu_s: float) -> None:
        """A site's training loop took so much processor time."""
        self._train_cpu_s += cpu_s
