"""Files that survive a crash.

The rules, in order:

1. A file is written whole to a temporary name, fsynced, renamed, and its folder fsynced.
2. A reader therefore sees the old bytes or the new bytes, never a part.
3. A failed fsync is fatal: it is never retried, since the kernel may have dropped the page.
4. An append is fsynced before it is acknowledged; a torn last line is dropped by the reader.
"""

import os
from pathlib import Path

from wardround_common.types import Digest, sha256_hex


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder for this user alone, with what is missing above it, durably.

    One that is there is made durable too, where its parent may be read: whoever made it may have
    crashed before that.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700)
        fsync_folder(path.parent)
    for path in (folder.parent, folder):
        if os.access(path, os.R_OK):
            fsync_folder(path)


def write_file(path: Path, data: bytes | memoryview) -> Digest:
    """:func:`replace_file`, and the SHA-256 of ``data``."""
    replace_file(path, data)
    return sha256_hex(data)


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` atomically and durably.

    Args:
        path: the final name; its folder must exist.
        data: the whole content.

    Raises:
        OSError: the disk refused; the old file, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)  # noqa: PTH105  one name for the crash tests to hook
    fsync_folder(path.parent)


def adopt_file(source: Path, path: Path) -> None:
    """Rename a file to its final name, durably.

    Args:
        source: on the same file system as ``path``, its bytes fsynced already.
        path: the final name.

    Raises:
        OSError: the disk refused.
    """
    os.replace(source, path)  # noqa: PTH105  one name for the crash tests to hook
    fsync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append one line and fsync it before returning.

    Args:
        path: the log; created with its folder entry made durable when new.
        line: the bytes without the newline.

    Raises:
        OSError: the disk refused; a partial last line may remain and is dropped by readers.
    """
    created = not path.exists()
    with path.open("ab") as file:
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if created:
        fsync_folder(path.parent)
