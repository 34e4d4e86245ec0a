"""Arrays in files are checked and folded as arrays in memory are, and take no memory."""

from pathlib import Path

import numpy as np
import pytest

from wardround_common.types import TensorSpec, sha256_hex
from wardround_common.wire.layout import Layout
from wardround_server.admission import magnitudes, quick_norm
from wardround_server.aggregation.mean import WeightedMean
from wardround_server.mapped import WINDOW_BYTES, mapped, windows
from wardround_server.rounds.journal import Journal

KERNEL_BYTES = (1 << 21) + (1 << 16)
"""What the kernel may map where one page is read: the huge page, and some pages around it."""
SIZES = [1, WINDOW_BYTES // 4 - 1, WINDOW_BYTES // 4, WINDOW_BYTES // 4 + 1, 3 * WINDOW_BYTES // 4]


def _layout(size: int) -> Layout:
    return Layout((TensorSpec("w", "float32", (size,)),))


def _pair(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.Generator(np.random.PCG64(size)).normal(size=size).astype(np.float32)
    (folder / "array").write_bytes(values.tobytes())
    return values, np.asanyarray(mapped(folder / "array", _layout(size)))


@pytest.mark.parametrize("size", SIZES)
def test_norms_and_means_have_the_same_bits_as_in_memory(tmp_path: Path, size: int) -> None:
    held, in_file = _pair(tmp_path, size)
    assert quick_norm(held) == quick_norm(in_file)
    assert magnitudes(held) == magnitudes(in_file)
    means = []
    for values in (held, in_file):
        mean = WeightedMean(size)
        mean.add(values, 3)
        mean.add(values[::-1].copy(), 2)
        mean.add(values, 5)
        means.append(mean.take().numpy().tobytes())
    assert means[0] == means[1]


def test_windows_cover_the_array_once_and_an_array_in_memory_is_one(tmp_path: Path) -> None:
    held, in_file = _pair(tmp_path, SIZES[-1] + 7)
    assert list(windows(held)) == [slice(0, held.size)]
    parts = [in_file[where] for where in windows(in_file)]
    assert len(parts) == 4
    np.testing.assert_array_equal(np.concatenate(parts), held)


def test_pages_of_a_window_are_given_back_after_it(tmp_path: Path) -> None:
    def resident() -> int:
        text = Path("/proc/self/smaps").read_text()
        _, _, rest = text.partition(str(tmp_path / "array"))
        return int(rest.partition("Rss:")[2].split()[0]) * 1024

    _, in_file = _pair(tmp_path, 8 * WINDOW_BYTES // 4)
    largest = 0
    for where in windows(in_file):
        in_file[where].sum()
        largest = max(largest, resident())
    assert WINDOW_BYTES // 2 < largest <= KERNEL_BYTES
    in_file.sum()  # without windows
    assert resident() == 8 * WINDOW_BYTES


def test_a_spooled_file_becomes_an_object_by_its_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.spool.mkdir()
    path, digest = journal.spool / "a-3", sha256_hex(b"bytes")
    path.write_bytes(b"bytes")
    inode = path.stat().st_ino
    journal.adopt(digest, path)
    assert (tmp_path / "objects" / digest).stat().st_ino == inode
    assert Journal(tmp_path).load(digest) == b"bytes"
    assert not path.exists()


def test_a_second_file_of_the_same_bytes_is_not_needed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.spool.mkdir()
    digest = journal.store(b"bytes")
    (journal.spool / "b-3").write_bytes(b"bytes")
    journal.adopt(digest, journal.spool / "b-3")
    assert list(journal.spool.iterdir()) == []
    assert journal.load(digest) == b"bytes"


def test_what_was_half_way_in_when_the_aggregator_died_is_deleted(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("step_started", step=0)
    journal.spool.mkdir()
    (journal.spool / "a-0").write_bytes(b"half")
    again = Journal(tmp_path)
    assert not again.spool.exists()
    assert len(again.records) == 1


def test_an_adopted_object_is_kept_by_a_sweep_that_still_waits(tmp_path: Path) -> None:
    journal = Journal(tmp_path, settle_every_s=1e9)
    journal.spool.mkdir()
    (tmp_path / "objects" / ("0" * 64)).write_bytes(b"old")
    journal.append("step_started", step=1)
    journal.keep_only(set())
    (journal.spool / "a-1").write_bytes(b"new")
    journal.adopt(sha256_hex(b"new"), journal.spool / "a-1")
    journal.flush()
    assert [path.name for path in (tmp_path / "objects").iterdir()] == [sha256_hex(b"new")]
