"""What went wrong at simulated sites, in whichever process.

Whoever simulates a federation operates every site, so the cause is theirs to see in full. It goes
from a worker process to this one as text, over a pipe that nobody else reads.
"""

from wardround_common import errors
from wardround_common.sites import FailureHook

Told = tuple[str, str, str, str]
"""Site, name of the error's class, its code, its text."""


class Failures:
    """Collects failures.

    Args:
        hook: told each one, in the process that simulates.

    Attributes:
        first: the first failure; None while there is none.
    """

    def __init__(self, hook: FailureHook) -> None:
        self.first: Exception | None = None
        self._hook = hook
        self._kept: list[Told] | None = None

    def note(self, site: str, error: Exception) -> None:
        """A site failed."""
        if self._kept is not None:
            code = error.code if isinstance(error, errors.WardroundError) else ""
            self._kept.append((site, type(error).__name__, code, str(error)))
            return
        self.first = self.first or error
        self._hook(site, error)

    def keep(self) -> None:
        """From now on this process is a worker: keep failures until they are taken."""
        self._kept = []

    def take(self) -> list[Told]:
        """What a worker has kept since the last call."""
        taken = list(self._kept or ())
        self._kept = []
        return taken

    def relay(self, told: Told) -> None:
        """A failure that a worker has told."""
        site, name, code, text = told
        kind = getattr(errors, name, None) if code else None
        if isinstance(kind, type) and issubclass(kind, errors.WardroundError):
            self.note(site, kind(text, code=code))
        else:
            self.note(site, RuntimeError(f"{name}: {text}"))
