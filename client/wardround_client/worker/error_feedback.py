"""Error feedback: what coding lost of a site's update goes into its next one.

Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014, section 3; Karimireddy et al.,
"Error Feedback Fixes SignSGD", ICML 2019, algorithm 1: ``p = update + e``, send ``c = code(p)``, keep
``e = p - decode(c)``. Over the rounds the site then has sent the sum of its updates, but for the last
remainder.

The rules:

1. The remainder of a round is a file of its own; round r starts from the newest one before r. So the
   same question is answered with the same bytes, however often it is asked, and after a crash.
2. A run may be thrown back to the last moment at which its journal became durable: whoever makes the
   journal durable makes the remainders durable before it, and deletes older ones only after.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wardround_common.durable import fsync_folder
from wardround_common.errors import IntegrityError
from wardround_common.wire.layout import Packed, as_bytes

_SUFFIX = ".f32"
_KEPT = 2
"""Remainders of a site that a run may start from: of the last durable round, and of the next one."""


class ErrorFeedback:
    """One site's remainders within one run.

    Args:
        folder: holds the site's remainders and nothing else; made when the first one is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, round_: int, size: int) -> Packed | None:
        """The remainder that a round starts from.

        Args:
            round_: the round, from 1.
            size: values in an update.

        Returns:
            float32 [size]; None where nothing has been sent yet.

        Raises:
            IntegrityError: the file has another size.
        """
        earlier = [number for number in _rounds(self._folder) if number < round_]
        if not earlier:
            return None
        path = _path(self._folder, max(earlier))
        remainder = np.fromfile(path, dtype="<f4")
        if remainder.size != size:
            raise IntegrityError(
                f"{path} is damaged or of another run; start a new run", code="remainder_size"
            )
        return remainder.astype(np.float32, copy=False)

    def keep(self, round_: int, remainder: Packed) -> None:
        """Write what coding lost in a round; not durable before :func:`make_durable`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = _path(self._folder, round_)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(as_bytes(remainder))
        os.replace(temporary, path)  # noqa: PTH105  one name for the crash tests to hook


class Remainders:
    """The remainders of all sites of a run, for whoever makes its journal durable.

    Args:
        folder: holds one folder a site.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._past: list[Path] = []

    def of(self, site: str) -> ErrorFeedback:
        """One site's."""
        return ErrorFeedback(self._folder / site)

    @property
    def exists(self) -> bool:
        """Whether anything is remembered."""
        return self._folder.exists()

    def make_durable(self) -> None:
        """To be called before the journal becomes durable.

        Deletes what was out of use when the journal became durable the last time: until then the
        run might have been thrown back to it.
        """
        for path in self._past:
            path.unlink(missing_ok=True)
        self._past = []
        folders = sorted(self._folder.iterdir()) if self._folder.exists() else []
        for folder in folders:
            rounds = sorted(_rounds(folder))
            _sync(_path(folder, number) for number in rounds[-_KEPT:])
            fsync_folder(folder)
            self._past += [_path(folder, number) for number in rounds[:-_KEPT]]
        if folders:
            fsync_folder(self._folder)


def _rounds(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob(f"*{_SUFFIX}")]


def _path(folder: Path, round_: int) -> Path:
    return folder / f"{round_}{_SUFFIX}"


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
