"""`os.fork` while another thread works: no lock stays held in the child, without that thread."""

from __future__ import annotations

import os
import pickle
import threading

import pytest
from subprocesses import python

import rnnfast
from rnnfast import _backend
from rnnfast._locks import Lock

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# What the child runs ends it within a minute, with status 0 only if it went well.
FORK = """
import os, signal, threading, time
import numpy as np
import rnnfast
from rnnfast import _backend

def fork(run):
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            run()
        except BaseException:
            os._exit(1)
        os._exit(0)
    print("status", os.waitpid(child, 0)[1], flush=True)
"""


def forked(code: str) -> str:
    done = python(FORK + code, RNNFAST_BACKEND=_backend.current().name, RNNFAST_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_fork
@pytest.mark.parametrize("lock", ["layer.parameters.lock", "_backend._lock", "tape._lock"])
def test_a_lock_that_another_thread_holds_is_free_in_the_child(lock):
    code = f"""
layer = rnnfast.GRU(2, 3)
x = np.ones((4, 2), np.float32)
tape = layer.record(x)
held, done = threading.Event(), threading.Event()

def hold():
    with {lock}:
        held.set()
        done.wait()

def run():
    with {lock}:
        pass
    layer.parameters.update(layer.state_dict())
    layer(x)
    tape.backward()
    rnnfast.set_backend(_backend.current().name)

thread = threading.Thread(target=hold)
thread.start()
held.wait()
fork(run)
done.set()
thread.join()
"""
    assert forked(code) == "status 0"


@needs_fork
def test_fork_while_another_thread_packs():
    code = """
x = np.ones((1, 2), np.float32)
rnnfast.LSTM(2, 3)(x)  # what is compiled or loaded once is
layer = rnnfast.LSTM(1500, 1500)
x = np.ones((1, 1500), np.float32)
thread = threading.Thread(target=layer, args=(x,))
thread.start()
time.sleep(0.005)
fork(lambda: layer(x))
thread.join()
"""
    assert forked(code) == "status 0"


@needs_fork
def test_a_lock_that_the_forking_thread_holds_stays_its_own():
    code = """
lock = rnnfast.GRU(2, 3).parameters.lock

def run():
    taken = []
    thread = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False)))
    thread.start()
    thread.join()
    lock.__exit__()
    assert taken == [False]
    thread = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False)))
    thread.start()
    thread.join()
    assert taken == [False, True]

with lock:
    fork(run)
"""
    assert forked(code) == "status 0"


def test_excludes_other_threads_but_not_its_own():
    lock, taken = Lock(), []
    with lock, lock:
        thread = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert taken == [False]


def test_is_not_pickled():
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(Lock())
    layer = pickle.loads(pickle.dumps(rnnfast.GRU(2, 3)))
    with layer.parameters.lock:
        pass
