"""What has left so far, as the audit log says: what limits over time are counted by."""

from collections import defaultdict
from collections.abc import Mapping

from wardround_common.audit.entries import Value


class Released:
    """The answers that have left."""

    def __init__(self) -> None:
        self._questions: dict[tuple[str, str, int], str] = {}
        self._runs: defaultdict[str, set[str]] = defaultdict(set)
        self._updates: defaultdict[str, set[str]] = defaultdict(set)
        self._moments: dict[str, str] = {}

    def add(self, day: str, fields: Mapping[str, Value]) -> None:
        """One more.

        Args:
            day: ``YYYY-MM-DD``, UTC.
            fields: of its entry in the log.
        """
        run, kind, digest = (str(fields[name]) for name in ("run", "kind", "manifest_sha256"))
        self._questions.setdefault((run, kind, int(fields["round"])), digest)
        self._runs[day].add(run)
        if "moments_sha256" in fields:
            self._moments.setdefault(run, str(fields["moments_sha256"]))
        if kind == "train":
            self._updates[day].add(digest)

    def question(self, run: str, kind: str, round_: int) -> str | None:
        """Digest of the question of a kind that was answered in a round of a run; None if none was."""
        return self._questions.get((run, kind, round_))

    def moments(self, run: str) -> str | None:
        """Digest of how columns were standardised in a run; None if that was not said yet."""
        return self._moments.get(run)

    def runs(self, day: str) -> set[str]:
        """Runs that were answered on a day."""
        return set(self._runs[day])

    def updates(self, day: str) -> set[str]:
        """Digests of the questions whose updates have left on a day."""
        return set(self._updates[day])
