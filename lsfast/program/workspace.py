"""The memory that products work in: kept between them, because fresh pages can cost as much as the arithmetic.

The C library of Linux gives memory back whenever the top of its heap is free, and maps every large block anew: each
product then touches pages that the kernel must find and clear first (a third of the time of a convolutional network's
products). While a linearization lives, blocks up to `LARGEST` are taken from the heap and the heap is not given back;
with the last one it is.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from typing import Any

LARGEST = 32 << 20  # bytes: the C library maps larger blocks anew whatever it is told
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt (malloc.h)
_users = 0


def keep_memory(owner: object) -> None:
    """Keep the memory of products in the process until `owner` is gone (and every other owner)."""
    global _users
    library = _c_library()
    if library is None:
        return
    if _users == 0:
        library.mallopt(_MMAP_THRESHOLD, LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    _users += 1
    weakref.finalize(owner, _give_back, library)


def _give_back(library: Any) -> None:
    global _users
    _users -= 1
    if _users == 0:
        library.mallopt(_TRIM_THRESHOLD, 2 * LARGEST)  # what the library itself settles at after large blocks
        library.malloc_trim(0)


def _c_library() -> Any:
    """Return the C library where it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version") else None
