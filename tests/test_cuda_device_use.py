"""The kernels on a CUDA device as programs use them: streams, graphs, devices, mixed precision."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cuda_devices  # noqa: E402
from cuda_devices import KINDS, assert_same_bits, flat, normal, pair, step  # noqa: E402

import rnnfast.torch as rt  # noqa: E402
from rnnfast import functional  # noqa: E402

pytestmark = cuda_devices.MARKS


def on(stream):
    """Work of within starts after all that was put on the current stream before."""
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


@pytest.mark.parametrize("hidden", [128, 1500])
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


def test_on_streams_of_the_callers_at_once():
    """Passes whose blocks wait for each other must not keep each other from the processors."""
    modules = [pair("lstm", 16, hidden)[0] for hidden in (256, 768)]
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
    x = normal(7, 3, 5, where="cuda:1")
    cuda_devices.assert_same_step(ours, theirs, x)
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
    cuda_devices.assert_near(results, flat(theirs(x.double())), 2e-2)


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
        cuda_devices.assert_near([f.cpu() for f in found], [w.double() for w in wanted], 1e-5)
        assert_same_bits(flat(model.cpu()(x)), wanted)


@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_cupy_arrays(cell, reverse):
    """On a stream of CuPy's; what torch gives is taken as it lies."""
    cupy = pytest.importorskip("cupy")
    module, _ = pair(cell, 5, 64)
    x, dy = normal(7, 3, 5), normal(7, 3, 64)
    weights = [p.detach() for p in module.parameters()]
    options = {"lengths": [7, 0, 4], "reset": torch.eye(7, 3).bool().numpy(), "reverse": reverse}
    host = functional.forward(
        functional.pack(cell, *(w.cpu().double().numpy() for w in weights)),
        x.cpu().double().numpy(),
        training=True,
        **options,
    )
    torch.cuda.synchronize()  # the interfaces of torch's tensors name no stream
    with cupy.cuda.Stream(non_blocking=True):
        run = functional.forward(functional.pack(cell, *weights), x, training=True, **options)
        grads = run.backward(dy)
        assert isinstance(run.y, cupy.ndarray)
        found = [run.y, run.h, grads.x, grads.h0, *grads.weights[:4]]
        found = [torch.from_numpy(cupy.asnumpy(value)) for value in found]
    wanted = host.backward(dy.cpu().double().numpy())
    wanted = [host.y, host.h, wanted.x, wanted.h0, *wanted.weights[:4]]
    cuda_devices.assert_near(found, map(torch.from_numpy, wanted), 1e-4)
