"""Packed weights in threads, and how long they live."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import pytest

torch = pytest.importorskip("torch")

import rnnfast.torch as rt  # noqa: E402  after torch is known to be there
from rnnfast import _backend  # noqa: E402
from rnnfast._native_backend import NativeBackend  # noqa: E402
from rnnfast.torch import exchange  # noqa: E402

pytestmark = pytest.mark.usefixtures("native")


def run(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(x)[0]


def in_threads(*work) -> None:
    """Runs them at once, and raises what one of them raised."""
    raised = []

    def call(function):
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=call, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


@pytest.fixture
def module():
    torch.manual_seed(0)
    return rt.LSTM(5, 20)


@pytest.fixture
def x():
    return torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1))


def test_one_module_from_several_threads(module, x):
    want = run(module, x).clone()
    fresh = rt.LSTM(5, 20)
    fresh.load_state_dict(module.state_dict())
    start, got = threading.Barrier(4), []

    def call():
        start.wait()
        got.extend(run(fresh, x) for _ in range(50))

    in_threads(*[call] * 4)
    assert len(got) == 200
    assert all(torch.equal(y, want) for y in got)


def test_a_parameter_swapped_while_others_call(module, x):
    """Each result is of one of the two, and the last of the last."""
    weights = [module.weight_hh_l0.data, torch.full((80, 20), 0.1)]
    legal = []
    for weight in weights:
        module.weight_hh_l0.data = weight
        legal.append(run(module, x))
    done, odd = threading.Event(), []

    def call():
        while not done.is_set():
            y = run(module, x)
            if not any(torch.equal(y, own) for own in legal):
                odd.append(y)

    def swap():
        try:
            for k in range(400):
                module.weight_hh_l0.data = weights[k % 2]
                if k % 20 == 0:
                    assert torch.equal(run(module, x), legal[k % 2])
        finally:
            done.set()

    in_threads(call, call, swap)
    assert not odd
    for weight, want in zip(weights, legal, strict=True):
        module.weight_hh_l0.data = weight
        assert torch.equal(run(module, x), want)


def test_contents_changed_while_others_call(module, x):
    values = [module.weight_hh_l0.detach().clone(), torch.full((80, 20), 0.1)]
    legal = []
    for value in values:
        module.weight_hh_l0.data.copy_(value)
        legal.append(run(module, x))
    done = threading.Event()

    def call():
        while not done.is_set():
            assert run(module, x).isfinite().all()

    def change():
        try:
            for k in range(400):
                module.weight_hh_l0.data.copy_(values[k % 2])
                assert torch.equal(run(module, x), legal[k % 2])
        finally:
            done.set()

    in_threads(call, call, change)
    for value, want in zip(values, legal, strict=True):
        module.weight_hh_l0.data.copy_(value)
        assert torch.equal(run(module, x), want)


def test_a_parameter_swapped_during_the_check(module, x, monkeypatch):
    """Reading many weights lets other threads run: here one of them sets another parameter."""
    one, other = module.weight_hh_l0.data, torch.full((80, 20), 0.1)
    want = run(module, x)
    backend = _backend.current()
    fingerprint = backend.fingerprint

    def meanwhile(*args):
        seen = fingerprint(*args)
        module.weight_hh_l0.data = other
        return seen

    one.neg_()  # so that the pack is made anew
    with monkeypatch.context() as patched:
        patched.setattr(backend, "fingerprint", meanwhile)
        run(module, x)
    one.neg_()
    module.weight_hh_l0.data = one
    assert torch.equal(run(module, x), want)


def test_contents_changed_while_packing_and_put_back_later(module, x, monkeypatch):
    """As when averaged parameters are put in for an evaluation, and taken out again."""
    one = module.weight_hh_l0.detach().clone()
    want, pack = run(module, x), NativeBackend.pack
    module.weight_hh_l0.data.add_(1)
    run(module, x)
    module.weight_hh_l0.data.copy_(one)

    def meanwhile(*args):
        module.weight_hh_l0.data.add_(1)
        return pack(*args)

    with monkeypatch.context() as patched:
        patched.setattr(NativeBackend, "pack", meanwhile)
        run(module, x)
    module.weight_hh_l0.data.copy_(one)
    assert torch.equal(run(module, x), want)


def test_frozen_from_several_threads(module, x):
    want = run(rt.freeze(module), x)

    def call():
        for _ in range(50):
            assert torch.equal(run(module, x), want)

    in_threads(*[call] * 3)


def test_training_in_several_threads(x):
    """A module each, as of several agents in one process."""
    results = {}

    def train(seed):
        module = modules[seed]
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(10):
            optimiser.zero_grad()
            module(x)[0].square().sum().backward()
            optimiser.step()
        results[seed] = run(module, x)

    for attempt in range(2):
        modules = []
        for seed in range(3):
            torch.manual_seed(seed)
            modules.append(rt.GRU(5, 7))
        if attempt == 0:
            for seed in range(3):
                train(seed)
            want = dict(results)
        else:
            in_threads(*[lambda seed=seed: train(seed) for seed in range(3)])
    assert all(torch.equal(results[seed], want[seed]) for seed in range(3))


def test_a_module_is_dropped_with_its_last_reference(x):
    module = rt.LSTM(5, 20)
    run(module, x)
    module(x)[0].sum().backward()
    seen, weight = weakref.ref(module), weakref.ref(module.weight_hh_l0)
    gc.disable()  # no cycle keeps it
    try:
        model = torch.nn.Sequential(module)
        del module
        assert seen() is not None
        y = model[0](x)[0]
        del model
        assert seen() is None
        y.sum().backward()  # needs its parameters, and not the module
        del y
        assert weight() is None
    finally:
        gc.enable()


MIB = 1 << 20


def resident() -> int:
    """The bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def one_module_after_another(x):
    for _ in range(40):
        module = rt.RNN(500, 500)
        run(module, x)
        yield


def one_that_changes(x):
    module = rt.RNN(500, 500)
    for _ in range(40):
        module.weight_hh_l0.data = module.weight_hh_l0.data.mul(0.99)
        run(module, x)
        yield


def trained(x):
    module = rt.RNN(500, 500)
    for _ in range(40):
        module(x)[0].sum().backward()
        module.weight_hh_l0.data.mul_(0.99)
        yield


def operators(x):
    """The registered ones, which know no module."""
    for _ in range(40):
        module = rt.RNN(500, 500)
        with torch.no_grad():
            torch.func.vmap(lambda x, of=module: of(x)[0])(x.unsqueeze(0))
        yield


def small_results(x):
    """Without the packs: of 5000 tensors of 64 numbers each time."""
    for _ in range(40):
        for _ in range(5000):
            exchange.copy_of(x[0, 0, :64])
        yield


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "use", [one_module_after_another, one_that_changes, trained, operators, small_results]
)
def test_memory_is_bounded(use):
    """A pack of these is 2 MiB: thirty more of them would be 60."""
    sizes = []
    for _ in use(torch.randn(2, 1, 500)):  # one step would read the weights where they lie
        sizes.append(resident())
    assert len(sizes) == 40
    assert sizes[-1] - sizes[9] < 20 * MIB


def test_contents_changed_while_packing_and_back_again_before_a_look(module, x, monkeypatch):
    """By another thread: what was packed then is of the contents in between."""
    first, second = module.weight_hh_l0.detach().clone(), torch.full((80, 20), 0.1)
    want, pack = run(module, x), NativeBackend.pack
    module.weight_hh_l0.data.mul_(2)  # so that the pack is made anew
    run(module, x)
    module.weight_hh_l0.data.copy_(first)

    def meanwhile(*args):
        in_threads(lambda: module.weight_hh_l0.data.copy_(second))
        packed = pack(*args)
        in_threads(lambda: module.weight_hh_l0.data.copy_(first))
        return packed

    with monkeypatch.context() as patched:
        patched.setattr(NativeBackend, "pack", meanwhile)
        waiting = threading.Event()
        other = threading.Thread(target=waiting.wait)
        other.start()
        run(module, x)
        waiting.set()
        other.join()
    assert torch.equal(run(module, x), want)
