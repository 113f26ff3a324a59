"""Locks that a forked child can use."""

from __future__ import annotations

import os
import threading
import weakref


class Lock:
    """A reentrant lock, for `with`.

    `os.fork` copies a lock that another thread holds as held, but not that thread, so that nobody
    in the child would ever release it. These are free there, unless the forking thread holds them.
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _free_from_other_threads(self) -> None:
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_locks):
        lock._free_from_other_threads()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
