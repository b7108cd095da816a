"""Threads of torch's OpenMP runtime.

GNU's runtime keeps a team of threads for each thread that has computed. Once the teams together
outnumber the cores their idle members sleep instead of spinning, and a decode step, which is a
thousand short parallel loops, takes twice as long. So whoever is done computing lets go of its
team; another is made in a tenth of a millisecond.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache

_HARD = 2  # omp_pause_hard of OpenMP 5.0: free all that can be made again


def let_go_of_threads() -> None:
    """End the calling thread's team; the next parallel loop makes another."""
    pause = _pause()
    if pause is not None:
        pause(_HARD)


@cache
def _pause() -> Callable[[int], int] | None:
    """`omp_pause_resource_all` of the runtime that torch has loaded, where it has one."""
    noload = getattr(os, "RTLD_NOLOAD", None)
    if noload is None:
        return None
    try:
        runtime = ctypes.CDLL("libgomp.so.1", mode=noload)
        return runtime.omp_pause_resource_all
    except (OSError, AttributeError):
        return None
