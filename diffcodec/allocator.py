"""Keep freed memory: large tensors come and go with every operation of the network.

glibc gives blocks of this size back to the system at once and gets them again page by page,
which takes a third of the network's time on large pictures.  Only a program may decide this
for its process, so the command line does and the library does not.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Tell the C library's malloc to reuse large blocks; False where it is not glibc's."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEEP))
