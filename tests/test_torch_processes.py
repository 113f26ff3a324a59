"""Modules in several processes and threads: data parallel training, workers, forks."""

from __future__ import annotations

import functools
import json
import multiprocessing

import pytest
from subprocesses import python

torch = pytest.importorskip("torch")

import torch_processes  # noqa: E402  after torch is known to be there
from torch.utils.data import DataLoader  # noqa: E402

import rnnfast  # noqa: E402
import rnnfast.torch as rt  # noqa: E402
from rnnfast import _backend  # noqa: E402

pytestmark = pytest.mark.slow

METHODS = multiprocessing.get_all_start_methods()
needs_fork = pytest.mark.skipif("fork" not in METHODS, reason="needs fork")


@pytest.fixture
def threads(keep_threads):
    """Sets torch's number of threads and ours, which are put back."""

    def choose(of_torch: int, ours: int) -> None:
        torch.set_num_threads(of_torch)
        rnnfast.set_num_threads(ours)

    return choose


@pytest.fixture
def shards(native):
    """The kernels, which share every pass out where they may; see `last_schedule`."""
    native.force_schedule("shards")
    yield native
    native.force_schedule("none")


def all_passes(module: torch.nn.Module, x: torch.Tensor, native) -> tuple[list, list[str]]:
    """What a module gives without gradients, with them, and its gradients; and how each ran."""
    with torch.no_grad():
        found = [module(x)[0]]
    ran = [native.last_schedule()]
    y, _ = module(x)
    ran.append(native.last_schedule())
    found += [y.detach(), *torch.autograd.grad(y.square().sum(), list(module.parameters()))]
    ran.append(native.last_schedule())
    return found, ran


@pytest.mark.parametrize("kind", [rt.LSTM, rt.GRU, rt.RNN])
def test_threads_are_the_fewer_of_torchs_and_ours(shards, threads, kind):
    torch.manual_seed(0)
    module, x = kind(17, 64), torch.randn(9, 6, 17)
    threads(1, 1)
    want, ran = all_passes(module, x, shards)
    assert ran == ["none"] * 3
    for of_torch, ours in ((1, 2), (2, 1), (2, 2), (3, 2), (2, 3)):
        threads(of_torch, ours)
        got, ran = all_passes(module, x, shards)
        assert ran == [("shards" if min(of_torch, ours) > 1 else "none")] * 3
        assert all(map(torch.equal, got, want))


def test_threads_of_the_operators(shards, threads):
    torch.manual_seed(0)
    module, x = rt.GRU(17, 64), torch.randn(1, 9, 6, 17)

    def batched():
        with torch.no_grad():
            return torch.vmap(lambda own: module(own)[0])(x)

    threads(1, 2)
    want = batched()
    assert shards.last_schedule() == "none"
    threads(2, 2)
    assert torch.equal(batched(), want)
    assert shards.last_schedule() == "shards"


@functools.cache
def fresh_process() -> dict:
    """What a process tells that imports the package, and calls a module on one thread."""
    done = python(
        """
import json, sys, psutil, torch, rnnfast
import rnnfast.torch as rt
told = {"compiler": "torch._dynamo" in sys.modules}
torch.set_num_threads(1)
rnnfast.set_num_threads(2)
module, x = rt.LSTM(700, 700), torch.randn(2, 1, 700)
before = psutil.Process().num_threads()
with torch.no_grad():
    for _ in range(5):
        module(x)
told["started"] = psutil.Process().num_threads() - before
print(json.dumps(told))
""",
        RNNFAST_BACKEND="native",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_thread_of_torch_starts_no_other(native):
    """Whatever a call does: it checks the parameters, packs them, and runs."""
    pytest.importorskip("psutil")
    assert fresh_process()["started"] == 0


def test_importing_it_imports_no_compiler(native):
    """`torch._dynamo` takes as long to import as torch."""
    pytest.importorskip("psutil")
    assert not fresh_process()["compiler"]


@needs_fork
def test_fork_after_work_in_threads(native):
    done = python(
        """
import os, signal, threading, torch, rnnfast
import rnnfast.torch as rt
from rnnfast import _native
torch.manual_seed(0)
torch.set_num_threads(2)
rnnfast.set_num_threads(2)
_native.force_schedule("shards")
module, x = rt.LSTM(17, 64, 2), torch.randn(9, 6, 17)

def everything():
    with torch.no_grad():
        y = module(x)[0]
    assert _native.last_schedule() == "shards"
    return [y, *torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))]

want = everything()
thread = threading.Thread(target=everything)  # whose packs and team others may hold
thread.start()
for _ in range(2):
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            assert all(map(torch.equal, everything(), want))
            module.weight_hh_l1.data.mul_(2)
            assert not torch.equal(everything()[0], want[0])
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print("status", os.waitpid(child, 0)[1], flush=True)
thread.join()
assert all(map(torch.equal, everything(), want))
""",
        RNNFAST_BACKEND="native",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["status 0"] * 2, done.stderr


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("method", [method for method in ("fork", "spawn") if method in METHODS])
def test_workers_of_a_data_loader(method):
    options = {"batch_size": 3, "collate_fn": torch_processes.Summary()}
    data = torch_processes.Encoded()
    want = list(DataLoader(data, **options))
    theirs = torch.nn.LSTM(torch_processes.FEATURES, 6)
    theirs.load_state_dict(data.encoder.state_dict())
    data.encoder, ours = theirs, data.encoder
    torch.testing.assert_close(list(DataLoader(data, **options)), want)
    data.encoder = ours
    loader = DataLoader(data, num_workers=2, multiprocessing_context=method, timeout=100, **options)
    got = list(loader)
    assert len(got) == len(want) == 4
    assert all(map(torch.equal, got, want))


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)
def test_data_parallel_gives_the_gradients_of_the_joined_batch(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNFAST_BACKEND", _backend.current().name)
    torch.multiprocessing.spawn(
        torch_processes.train_in_parallel, (str(tmp_path),), nprocs=torch_processes.WORLD
    )
    want = torch_processes.two_steps(torch_processes.reader(), torch_processes.batch())
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(torch_processes.WORLD)]
    assert all(map(torch.equal, *ranks))
    torch.testing.assert_close(ranks[0], want, rtol=1e-4, atol=1e-6)
