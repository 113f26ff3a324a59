"""The kernels on a CUDA device as programs use them: streams, graphs, devices, mixed precision."""

from __future__ import annotations

import importlib.util

import pytest

torch = pytest.importorskip("torch")

import cuda_devices  # noqa: E402
from cuda_devices import (  # noqa: E402
    HUGE,
    KINDS,
    STEPS,
    TOLERANCES,
    assert_same_bits,
    flat,
    normal,
    pair,
    states_of,
    step,
)

import rnnfast.torch as rt  # noqa: E402
from rnnfast import functional  # noqa: E402

pytestmark = cuda_devices.MARKS


def on(stream):
    """Work of within starts after all that was put on the current stream before."""
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


@pytest.mark.parametrize("hidden", [128, 1500, HUGE])
@pytest.mark.parametrize("kind", KINDS)
def test_inference_in_a_graph(kind, hidden):
    module, _ = pair(kind, 16, hidden)
    x = normal(32, 4, 16)
    with torch.no_grad():
        wanted = flat(module(x))
        stream = torch.cuda.Stream()
        with on(stream):
            module(x)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = flat(module(x))
        graph.replay()
        assert_same_bits(results, wanted)
        x.mul_(2)
        graph.replay()
        assert not torch.equal(results[0], wanted[0])
        assert_same_bits(results, flat(module(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_a_graph(kind):
    module, _ = pair(kind, 16, 128)
    x = normal(32, 4, 16).requires_grad_()
    at = [x, *module.parameters()]
    stream = torch.cuda.Stream()
    with on(stream):
        for _ in range(3):
            torch.autograd.grad(cuda_devices.weighted(flat(module(x))), at)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = flat(module(x))
        gradients = torch.autograd.grad(cuda_devices.weighted(results), at)
    with torch.no_grad():
        x.mul_(0.5)
        module.weight_hh_l0.mul_(0.5)
    graph.replay()
    assert_same_bits((results, gradients), step(module, x.detach()))


@pytest.mark.parametrize("hidden", [(256, 768), (1500, 2200), (HUGE, HUGE)], ids=str)
def test_on_streams_of_the_callers_at_once(hidden):
    """Passes whose blocks wait for each other must not keep each other from the processors.

    Those of a launch a step go by graphs, which passes share.
    """
    modules = [pair("lstm", 16, size)[0] for size in hidden]
    inputs = [normal(200, 16, 16), normal(200, 8, 16)]
    wanted = [step(m, x) for m, x in zip(modules, inputs, strict=True)]
    streams = [torch.cuda.Stream() for _ in modules]
    found = []
    for module, x, stream in zip(modules * 3, inputs * 3, streams * 3, strict=True):
        with on(stream):
            found.append(step(module, x))
    torch.cuda.synchronize()
    for own, other in zip(found, wanted * 3, strict=True):
        assert_same_bits(own, other)


def test_results_are_there_for_what_follows_on_the_stream():
    module, _ = pair("gru", 16, 256)
    x = normal(100, 16, 16)
    with torch.no_grad():
        wanted = module(x)[0]
        stream = torch.cuda.Stream()
        with on(stream):
            late = torch.zeros_like(x)
            torch.cuda._sleep(10_000_000)  # the input comes after some milliseconds
            late.copy_(x)
            found = module(late)[0] + 0
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(found, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_device_that_is_not_the_current_one(kind):
    ours, theirs = pair(kind, 5, 64, where="cuda:1")
    assert torch.cuda.current_device() == 0
    x = normal(STEPS, 3, 5, where="cuda:1")
    states = states_of(ours, 3, where="cuda:1")
    cuda_devices.assert_same_step(ours, theirs, x, states=states)
    assert all(r.device.index == 1 for r in flat(ours(x))) and torch.cuda.current_device() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_two_devices_at_once():
    modules = [pair("lstm", 16, 256, where=f"cuda:{k}")[0] for k in range(2)]
    inputs = [normal(200, 16, 16, where=f"cuda:{k}") for k in range(2)]
    wanted = [step(m, x) for m, x in zip(modules, inputs, strict=True)]
    found = [step(m, x) for m, x in zip(modules * 3, inputs * 3, strict=True)]
    for own, other in zip(found, wanted * 3, strict=True):
        assert_same_bits(own, other)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    ours, theirs = pair(kind, 16, 64)
    x = normal(8, 4, 16)
    with torch.autocast("cuda", torch.bfloat16):
        results = flat(ours(x))
    assert {r.dtype for r in results} == {torch.bfloat16}
    cuda_devices.assert_near(results, flat(theirs(x.double())), TOLERANCES[torch.bfloat16][0])


def test_training_with_scaled_gradients():
    """Of losses that torch.amp scales: parameters stay float32, and learn as without."""
    losses = []
    for precision in (None, torch.bfloat16):
        module, _ = pair("gru", 8, 64)
        head = torch.nn.Linear(64, 1).cuda()
        with torch.no_grad():
            head.weight.fill_(0.1), head.bias.zero_()
        optimizer = torch.optim.SGD([*module.parameters(), *head.parameters()], 0.1)
        scaler = torch.amp.GradScaler("cuda", enabled=precision is not None)
        x = normal(12, 16, 8)
        target = x.sum(2, keepdim=True).cumsum(0).tanh()
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cuda", precision, enabled=precision is not None):
                loss = (head(module(x)[0]).float() - target).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert all(p.grad.dtype is torch.float32 for p in module.parameters())
        losses.append(loss.item())
    assert losses[0] < 0.9 * target.var().item()
    assert abs(losses[1] - losses[0]) < 0.03 * losses[0]


@pytest.mark.parametrize(
    ("kind", "dtype", "options"),
    [
        ("lstm", torch.float32, {"proj_size": 20}),
        ("gru", torch.float64, {}),
        ("gru", torch.float16, {}),
    ],
    ids=["projection", "float64", "float16"],
)
@pytest.mark.parametrize("by_the_kernels", [False], ids=["by torch"], indirect=True)
def test_the_rest_is_torchs(kind, dtype, options):
    ours, theirs = pair(kind, 16, 64, dtype, **options)
    x = normal(8, 4, 16, dtype=dtype)
    theirs.to(dtype)
    assert_same_bits(flat(ours(x)), flat(theirs(x)))


def test_a_model_that_was_accelerated_moves_to_the_device_and_back():
    model = rt.accelerate(torch.nn.Sequential(torch.nn.LSTM(5, 45)))
    x = torch.randn(7, 3, 5)
    with torch.no_grad():
        wanted = flat(model(x))
        found = flat(model.cuda()(x.cuda()))
        allowed = 2 * TOLERANCES[torch.float32][0]  # neither is exact
        cuda_devices.assert_near([f.cpu() for f in found], [w.double() for w in wanted], allowed)
        assert_same_bits(flat(model.cpu()(x)), wanted)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_cupy_arrays(cell, reverse):
    """On a stream of CuPy's, from a state; what torch gives is taken as it lies."""
    import cupy

    module, _ = pair(cell, 5, 64)
    x, dy = normal(STEPS, 3, 5), normal(STEPS, 3, 64)
    states = [state[0] for state in states_of(module, 3)]
    weights = [p.detach() for p in module.parameters()]
    lengths, reset = [STEPS, 0, 4], torch.eye(STEPS, 3).bool().numpy()
    options = {"lengths": lengths, "reset": reset, "reverse": reverse, "training": True}
    host = functional.forward(
        functional.pack(cell, *map(in_float64, weights)),
        *map(in_float64, (x, *states)),
        **options,
    )
    torch.cuda.synchronize()  # the interfaces of torch's tensors name no stream
    with cupy.cuda.Stream(non_blocking=True):
        run = functional.forward(functional.pack(cell, *weights), x, *states, **options)
        assert isinstance(run.y, cupy.ndarray)
        found = results_of(run, run.backward(dy), cupy.asnumpy)
    wanted = results_of(host, host.backward(in_float64(dy)))
    for own, other, tolerance in zip(found, wanted, TOLERANCES[torch.float32], strict=True):
        cuda_devices.assert_near(own, other, tolerance)


def in_float64(tensor):
    """On the host, as NumPy's."""
    return tensor.cpu().double().numpy()


def results_of(run, grads, to_host=lambda array: array):
    """Results, and gradients, as tensors of the host."""
    parts = [run.y, run.h, run.c], [grads.x, grads.h0, grads.c0, *grads.weights[:4]]
    return [[torch.from_numpy(to_host(a)) for a in part if a is not None] for part in parts]
