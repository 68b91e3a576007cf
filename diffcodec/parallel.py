"""Threads for work that releases the GIL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")

_here = threading.local()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, initializer=mark_worker)


def mark_worker() -> None:
    """Let every :func:`thread_map` of the calling thread do its work in place from now on."""
    _here.is_worker = True


@contextmanager
def one_torch_thread(wanted: bool = True) -> Iterator[None]:
    """Let the calling thread alone do its convolutions inside the block, if that is ``wanted``.

    Torch's threads go on turning for a while after each, which slows down whatever else the
    cores have to do: of a small picture that costs more than they bring.
    """
    if not wanted:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Blas:
    """numpy's matrix products on the calling thread alone, as long as anyone wants that.

    The limit is one of the whole process, so that it is lifted when the last one leaves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._controller = ThreadpoolController()
        self._users = 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._take_control()
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._take_control()
                    self._limit.restore_original_limits()
                    self._take_control()

    def _take_control(self) -> None:
        """Let any thread set the limit: threadpoolctl 3.8 listens to the first one that did."""
        for library in self._controller.lib_controllers:
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread(force=True)


@cache
def _blas() -> _Blas:
    return _Blas()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let numpy multiply matrices on the calling thread alone inside the block.

    Like torch's, its threads go on turning after each product.  Ours are small, and other
    threads have work.
    """
    with _blas().alone():
        yield


def thread_map(function: Callable[[int], T], count: int) -> list[T]:
    """[function(0), …, function(count − 1)], in order, on all cores when count > 1.

    Inside another thread_map, or after :func:`mark_worker`, the work is done in place: workers
    that wait for workers could wait for ever.
    """
    if count == 1 or getattr(_here, "is_worker", False):
        return [function(number) for number in range(count)]
    return list(_pool().map(function, range(count)))
