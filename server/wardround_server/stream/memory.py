"""What this process keeps of freed memory.

glibc gives each thread a heap of its own (an *arena*), and keeps in each what its thread once needed. A
server with two threads a connection would hold several MiB a connection that nobody uses. One arena for
all threads is as fast here: copying and encrypting take long, allocating does not.
"""

import ctypes

_M_ARENA_MAX = -8
_ARENAS = 1


def share_arenas() -> bool:
    """Have threads that begin from now on share arenas; whether this C library can do that."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, _ARENAS))
