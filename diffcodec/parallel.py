"""Threads for work that releases the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1)


def thread_map(function: Callable[[int], T], count: int) -> list[T]:
    """[function(0), …, function(count − 1)], in order, on all cores when count > 1."""
    if count == 1:
        return [function(0)]
    return list(_pool().map(function, range(count)))
