"""Becomes another program that is killed when the process that started it dies.

Run as a file of its own, with nothing imported but what the kernel call needs::

    python -I -S child.py PARENT PROGRAM [ARGUMENT]...
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> bool:
    """Tie this process's life to its parent's; False if that has died already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent  # else it died before the kernel was told


def main(parent: int, words: list[str]) -> None:
    """Tie this process's life to its parent's, and become the program."""
    if not die_with(parent):
        return
    os.execv(words[0], words)  # noqa: S606  what the supervisor was told to run


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
