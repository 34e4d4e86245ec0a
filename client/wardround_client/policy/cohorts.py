"""Differencing: two answers about sets of patients that are nearly the same give away those who differ.

1. For each answer that leaves, the sets of patients behind it are remembered, over runs, federations and
   restarts.
2. A question is refused if the patients it would be answered about differ by fewer than ``limits.min_cell``
   from a set that was answered about before, and are not the same.
3. What is remembered are digests of identifiers, keyed by a secret of this site.

Sets are compared two by two. Three or more answers can be combined in ways that this does not see; against
that only differential privacy helps.
"""

import os
import threading
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np

from wardround_client.data.identities import Identities, digest64
from wardround_client.policy.rules import PolicyError
from wardround_common.durable import make_folder, replace_file
from wardround_common.errors import IntegrityError

_KEY: Final = "key"
_KEY_BYTES: Final = 32


class Cohorts:
    """The sets of patients that were answered about, one file each.

    Args:
        folder: made if absent.

    Raises:
        IntegrityError: a file there is damaged (``cohort_file``).
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder
        self._key = _key(folder / _KEY)
        self._lock = threading.Lock()
        self._keyed: dict[bytes, Identities] = {}
        self._known = {path.stem: _read(path) for path in folder.glob("*.set")}

    def check(self, parts: Mapping[str, Identities], fewest: int) -> None:
        """Let a question pass whose patients differ by none, or enough, from all known sets.

        Args:
            parts: name -> uint64 [n] digests of the patients behind an answer; each as often as it has
                examples.
            fewest: patients by which two sets must differ.

        Raises:
            PolicyError: ``policy_differencing``.
        """
        with self._lock:
            known = list(self._known.values())
        for name, patients in parts.items():
            mine = self._set(patients)
            for other in known:
                differ = len(np.setxor1d(mine, other, assume_unique=True))
                if 0 < differ < fewest:
                    raise PolicyError(
                        f"the {name} patients differ by {differ} from a set that was answered about "
                        f"before, limits.min_cell in policy.toml is {fewest}; wait until more have "
                        "changed, or put the data back",
                        code="policy_differencing",
                    )

    def keep(self, parts: Mapping[str, Identities]) -> None:
        """Remember what is answered about now; durable when this returns."""
        for patients in parts.values():
            mine = self._set(patients)
            data = mine.astype("<u8").tobytes()
            name = sha256(data).hexdigest()
            with self._lock:
                if name not in self._known and len(mine):
                    replace_file(self._folder / f"{name}.set", data)
                    self._known[name] = mine

    def _set(self, patients: Identities) -> Identities:
        """Ascending, each once, keyed."""
        content = patients.tobytes()
        with self._lock:
            if content not in self._keyed:
                once = {digest64(each.tobytes(), self._key) for each in np.unique(patients)}
                self._keyed = {**self._keyed, content: np.array(sorted(once), dtype=np.uint64)}
            return self._keyed[content]


def _key(path: Path) -> bytes:
    if not path.exists():
        replace_file(path, os.urandom(_KEY_BYTES))
    return path.read_bytes()


def _read(path: Path) -> Identities:
    data = path.read_bytes()
    if sha256(data).hexdigest() != path.stem:
        raise IntegrityError(
            f"{path} is damaged; restore it from a backup: without it, single patients could be found "
            "by comparing answers",
            code="cohort_file",
        )
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)
