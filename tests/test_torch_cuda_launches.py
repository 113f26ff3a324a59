"""How rnnfast.torch's passes get onto a CUDA device, which is emulated, and onto which they do."""

from __future__ import annotations

import contextlib

import pytest

torch = pytest.importorskip("torch")

import cuda_devices  # noqa: E402
from cuda_devices import assert_same_bits  # noqa: E402
from emulated_cuda import Launches  # noqa: E402

import rnnfast.torch as rt  # noqa: E402
from rnnfast.torch import accelerating, cuda, eager  # noqa: E402

pytestmark = pytest.mark.slow

REPLAYED = 32  # steps of a graph
STEPS, BATCH, HIDDEN = REPLAYED + 6, 3, 40


@pytest.fixture(autouse=True)
def emulated(emulated_library, monkeypatch):
    """Tensors of the host are the device's."""
    monkeypatch.setattr(cuda, "library", lambda: emulated_library)
    monkeypatch.setattr(cuda, "_is_on_device", lambda x: True)
    monkeypatch.setattr(cuda, "_on_stream", lambda x: (contextlib.nullcontext(), 0))
    monkeypatch.setattr(cuda, "_lacking", {})
    monkeypatch.setattr(eager, "layer", lambda *args: None)  # which runs tensors of the host
    monkeypatch.setattr(cuda_devices, "WHERE", "cpu")


def step_of(kind, dtype=torch.float32):
    ours, theirs = cuda_devices.pair(kind, 5, HIDDEN, dtype)
    x = cuda_devices.normal(STEPS, BATCH, 5, dtype=dtype)
    return ours, theirs, x, cuda_devices.states_of(ours, BATCH, dtype)


@pytest.mark.parametrize("dtype", cuda_devices.TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", cuda_devices.KINDS)
def test_steps_go_by_graphs(kind, dtype, emulator):
    """Of more blocks than there are processors: forward, and backward with a step more."""
    ours, theirs, x, states = step_of(kind, dtype)
    emulator.use(processors=1)
    cuda_devices.assert_same_step(ours, theirs, x, None, states)
    assert emulator.launches() == Launches(kernels=6 + 7, clusters=0, graphs=2)


def test_graphs_are_used_again(emulator):
    """For other tensors and shorter sequences, and the results are those of launches alone."""
    ours, _, x, states = step_of("lstm")
    emulator.use(processors=1)
    inputs = [(x, states), (x.flip(0) * 2, [s + 1 for s in states]), (x[:-3].clone(), states)]
    by_graphs = [cuda_devices.step(ours, given, None, own) for given, own in inputs * 2]
    assert emulator.launches().graphs == 2 * len(by_graphs)
    emulator.capture(True)
    alone = [cuda_devices.step(ours, given, None, own) for given, own in inputs * 2]
    assert emulator.launches().graphs == 0
    for found, wanted in zip(by_graphs, alone, strict=True):
        assert_same_bits(found, wanted)


def test_a_stream_that_is_captured_gets_every_launch(emulator):
    """As a graph of torch's has them all."""
    ours, theirs, x, states = step_of("gru")
    emulator.use(processors=1)
    emulator.capture(True)
    cuda_devices.assert_same_step(ours, theirs, x, None, states)
    assert emulator.launches() == Launches(kernels=STEPS + STEPS + 1, clusters=0, graphs=0)


def test_short_sequences_go_by_launches(emulator):
    ours, _, x, _ = step_of("rnn_tanh")
    emulator.use(processors=1)
    with torch.no_grad():
        ours(x[: REPLAYED - 1])
    assert emulator.launches() == Launches(kernels=REPLAYED - 1, clusters=0, graphs=0)


def test_a_device_that_there_is_no_code_for_is_torchs(emulator):
    ours, theirs, x, _ = step_of("lstm")
    emulator.use(has_code=False)
    with torch.no_grad():
        assert_same_bits(ours(x)[0], theirs.float()(x)[0])
    assert emulator.launches() == Launches(0, 0, 0)
    assert not cuda.runs(ours.weight_ih_l0)
    assert cuda.lacks(x) == "CUDA: an error of the emulator"


def test_the_report_says_why(emulator, monkeypatch):
    class OnCuda:
        """What a report reads of a parameter."""

        is_cuda, dtype, device = True, torch.float32, torch.device("cuda:0")

    module = rt.LSTM(5, HIDDEN)
    monkeypatch.setattr(module, "_parameter", lambda index: OnCuda())
    assert accelerating.report(module)[0].reason == ""
    emulator.use(has_code=False)
    cuda._lacking.clear()
    why = accelerating.report(module)[0].reason
    assert why == "runs by torch: on cuda:0: CUDA: an error of the emulator"
    monkeypatch.setattr(cuda, "library", lambda: None)
    assert accelerating.report(module)[0].reason.startswith("runs by torch: on cuda:0: not built: ")


def test_a_device_is_asked_once(emulated_library, monkeypatch):
    ours, _, x, _ = step_of("gru")
    asked, lacks = [], emulated_library.lacks
    monkeypatch.setattr(emulated_library, "lacks", lambda: [asked.append(1), lacks()][1])
    with torch.no_grad():
        ours(x), ours(x)
    assert asked == [1]
