"""Locks that a forked child can use."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _thread import RLock
else:
    RLock = type(threading.RLock())


class Lock(RLock):  # type: ignore[misc]  # final for type checkers only
    """A reentrant lock for `with` statements, which stays usable after `os.fork`.

    A fork copies a lock that another thread holds in the held state, but does not copy the thread,
    so nobody in the child would ever release it. This lock is freed in the child, unless the
    forking thread itself holds it.

    `with` calls the interpreter's own C methods. With methods in Python, a KeyboardInterrupt could
    come after the lock is taken but before the block begins. (Libraries that replace threading's
    locks, such as gevent, may bring locks in Python.)
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        _locks.add(self)

    def _free_from_other_threads(self) -> None:
        if self.acquire(blocking=False):
            self.release()
        else:
            again: Any = self
            again._at_fork_reinit()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_locks):
        lock._free_from_other_threads()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
