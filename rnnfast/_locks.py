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


class Lock(RLock):  # type: ignore[misc]  # which is final for type checkers alone
    """A reentrant lock, for `with`.

    `os.fork` copies a lock that another thread holds as held, but not that thread, so that nobody
    in the child would ever release it. These are free there, unless the forking thread holds them.

    What `with` calls is the interpreter's own: where it were Python, a KeyboardInterrupt could come
    after the lock is taken, and before the block. (Who replaces threading's locks, as gevent does,
    has others in Python.)
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
