"""Passes by the threads of torch's OpenMP, which spin after its own operations."""

from __future__ import annotations

import os
import sys

import pytest
from subprocesses import python

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.usefixtures("native"),
    pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of /proc"),
    pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch has no OpenMP"),
]

# `passes(form, threads)` gives results and gradients of layers that two threads share by rows, by
# units, by directions and by layers, and how they did; `tasks()` the threads of the process. The
# weights are so small that one thread alone looks whether they have changed.
PRELUDE = """
import os, sys, threading, time
import torch
import rnnfast
import rnnfast.torch as rt
from rnnfast import _native as native

def tasks():
    return len(os.listdir("/proc/self/task"))

FORMS = {
    "shards": (("GRU", 64, 64), {}, (60, 32, 64)),
    "units": (("GRU", 96, 96), {}, (300, 1, 96)),
    "directions": (("LSTM", 64, 64), {"bidirectional": True}, (400, 1, 64)),
    "layers": (("RNN", 96, 96), {"num_layers": 2}, (900, 1, 96)),
}

def passes(form, threads):
    (kind, *sizes), options, shape = FORMS[form]
    torch.set_num_threads(threads)
    seed = torch.Generator().manual_seed(0)
    module = getattr(rt, kind)(*sizes, **options)
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -0.1, 0.1, generator=seed)
    x = torch.randn(shape, generator=seed)
    big = torch.ones(1 << 18)
    big + big  # after which torch's threads spin
    with torch.no_grad():
        found = [module(x)[0]]
    ran = [native.last_schedule()]
    y, _ = module(x)
    ran.append(native.last_schedule())
    found += [y.detach(), *torch.autograd.grad(y, list(module.parameters()), torch.cos(y.detach()))]
    ran.append(native.last_schedule())
    return found, ran

def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start(), thread.join()
    counts = []  # of its own and OpenMP's for it, which end some time after it is joined
    while len(counts) < 2000 and len(set(counts[-20:])) != 1 or len(counts) < 20:
        time.sleep(0.005)
        counts.append(tasks())
    return found[0]

def same(some, others):
    return all(map(torch.equal, some, others))

rnnfast.set_num_threads(2)
native.force_schedule("estimated")  # whatever takes less on a machine that is busy
"""


def run(code: str, **environment: str) -> list[str]:
    done = python(PRELUDE + code, RNNFAST_BACKEND="native", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_all_schedules_on_torchs_threads():
    code = """
alone = {form: passes(form, 1) for form in FORMS}
torch.set_num_threads(2)
torch.ones(1 << 18).add_(1)
before = tasks()
for form in FORMS:
    found, ran = passes(form, 2)
    shared = 2 if form == "layers" else 3  # backward, of two chunks, is not worth it
    print(same(found, alone[form][0]), ran[:shared] == [form] * shared)
    print(alone[form][1].count("none"))
print(tasks() - before)
rnnfast.GRU(64, 64)(torch.randn(60, 32, 64).numpy())
print(tasks() - before)  # the pool's, for NumPy's arrays
"""
    assert run(code) == [*["True", "True", "3"] * 4, "0", "1"]


@pytest.mark.parametrize("limit", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}])
def test_fewer_threads_than_were_asked_for(limit):
    """As many as OpenMP gives, which may be one: then the caller runs alone."""
    code = """
for form in FORMS:
    print(same(passes(form, 2)[0], passes(form, 1)[0]))
"""
    assert run(code, **limit) == ["True"] * 4


@pytest.mark.parametrize(("of_torch", "ours"), [(3, 2), (2, 3)])
def test_other_numbers(of_torch, ours):
    """Torch's threads stay as many as they were, whoever has fewer."""
    code = f"""
rnnfast.set_num_threads({ours})
torch.set_num_threads({of_torch})
torch.ones(1 << 18).add_(1)
before = tasks()
for form in FORMS:
    found, ran = passes(form, {of_torch})
    print(ran[:2] == [form] * 2)
torch.ones(1 << 18).add_(1)
print(tasks() - before)
print(all(same(passes(form, {of_torch})[0], passes(form, 1)[0]) for form in FORMS))
"""
    assert run(code) == [*["True"] * 4, "0", "True"]


def test_no_more_threads_are_called_than_have_work():
    """Of many, whom the caller would wait for: the pool's, which is one more, run it."""
    code = """
native.force_schedule("shards")  # for which the pool's threads are waited for
torch.set_num_threads(5)
torch.ones(1 << 18).add_(1)
before = tasks()
found, ran = passes("shards", 5)
print(tasks() - before, ran == ["shards"] * 3)
"""
    assert run(code) == ["1", "True"]


def test_short_calls_have_them_when_they_come_one_soon_after_the_other():
    code = """
torch.set_num_threads(2)
module, x = rt.LSTM(256, 256), torch.randn(1, 1, 256)

def runs():
    with torch.no_grad():
        module(x)
    return native.last_schedule()

far = set()
for _ in range(20):
    time.sleep(0.005)
    far.add(runs())
end = time.monotonic() + 20
while (near := runs()) == "none" and time.monotonic() < end:
    pass
print(far, near)
rnnfast.set_num_threads(1)
with torch.no_grad():
    want = module(x)[0]
    rnnfast.set_num_threads(2)
    print(all(torch.equal(module(x)[0], want) for _ in range(100)))
"""
    assert run(code) == ["{'none'}", "units", "True"]


def test_other_threads_have_the_pool():
    code = """
torch.set_num_threads(2)
passes("shards", 2)
before = tasks()

def call():
    passes("shards", 2)
    return tasks() - before

print(*(in_a_thread(call) for _ in range(3)))
"""
    # Itself, one of OpenMP's for torch's own operation, and the pool's, which stays.
    assert run(code) == ["3", "3", "3"]


def test_the_next_thread_has_them_when_the_first_has_ended():
    code = """
torch.set_num_threads(2)  # which makes one for something else

def call():
    torch.ones(1 << 18).add_(1)
    before = tasks()
    passes("shards", 2)
    return tasks() - before

print(*(in_a_thread(call) for _ in range(2)))
"""
    assert run(code) == ["0", "0"]


def test_several_callers():
    code = """
alone = {form: passes(form, 1)[0] for form in FORMS}
right = []

def call():
    for _ in range(5):
        for form in FORMS:
            right.append(same(passes(form, 2)[0], alone[form]))

threads = [threading.Thread(target=call) for _ in range(3)]
[t.start() for t in threads], [t.join() for t in threads]
print(len(right), all(right))
"""
    assert run(code) == ["60", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_pool_of_its_own():
    code = """
alone = {form: passes(form, 1)[0] for form in FORMS}
(kind, *sizes), _, shape = FORMS["shards"]
module, x = rt.GRU(*sizes), torch.randn(shape)
with torch.no_grad():
    torch.set_num_threads(2)
    before = module(x)[0]
    child = os.fork()
    if not child:
        native.force_schedule("shards")  # for which the pool's threads are waited for
        y = module(x)[0]  # which torch would compare by threads that are gone
        equal = y.numpy().tobytes() == before.numpy().tobytes()
        os._exit(int(equal and native.last_schedule() != "none"))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(same([module(x)[0]], [before]))
"""
    assert run(code) == ["1", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_that_imports_the_modules():
    """After its parent has used OpenMP, for whose threads it would wait."""
    code = """
import os, torch
torch.set_num_threads(2)
torch.ones(1 << 18).add_(1)
x = torch.zeros(60, 32, 64)
child = os.fork()
if not child:
    import rnnfast
    import rnnfast.torch as rt
    from rnnfast import _native as native
    rnnfast.set_num_threads(2)
    native.force_schedule("shards")
    module = rt.GRU(64, 64)
    with torch.no_grad():
        module(x)
    os._exit(int(native.last_schedule() == "shards"))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = python(code, RNNFAST_BACKEND="native")
    assert done.stdout.split() == ["1"], done.stderr


def test_what_has_no_openmp(native):
    code = """
from rnnfast import _native as native
print(native.use_openmp("no such file"), native.use_openmp(native.__file__))
"""
    assert python(code).stdout.split() == ["False", "False"]
    with pytest.raises(TypeError):
        native.use_openmp(3)
