"""rnnfast.torch on a CUDA device that is emulated: its kernels' own code, on the host's tensors.

What only a device can show is in test_cuda_device.py.
"""

from __future__ import annotations

import contextlib

import pytest

torch = pytest.importorskip("torch")

import cuda_devices  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch_twins import normal, state_for, twins  # noqa: E402

import rnnfast.torch as rt  # noqa: E402
from rnnfast import _cuda  # noqa: E402
from rnnfast.torch import cuda, eager  # noqa: E402
from rnnfast.torch.accelerating import _by_torch  # noqa: E402

pytestmark = pytest.mark.slow

CELLS = ["rnn_tanh", "rnn_relu", "gru", "lstm"]
BATCH, STEPS = 3, 4


@pytest.fixture(autouse=True)
def emulated(emulated_library, monkeypatch):
    """Tensors of the host are the device's."""
    monkeypatch.setattr(cuda, "library", lambda: emulated_library)
    monkeypatch.setattr(cuda, "_is_on_device", lambda x: True)
    monkeypatch.setattr(cuda, "_on_stream", lambda x: (contextlib.nullcontext(), 0))


@pytest.fixture(params=[0, 16], ids=["grid", "clusters"])
def by_each_way(request, emulator):
    """On a device without clusters and on one that has them, which then run all passes."""
    emulator.use(cluster_blocks=request.param)
    yield
    launched = emulator.launches()
    assert launched.kernels and launched.clusters == (launched.kernels if request.param else 0)


def on_device(module, x, state=None):
    """The module's results as on a device; by the kernels, and not by torch."""
    states = None if state is None else state if isinstance(state, tuple) else (state,)
    result = cuda.layer(module, x, states)
    assert result is not None
    output, last = result
    return output, (last if module.mode == "LSTM" else last[0])


def flat(result):
    output, last = result
    data = output.data if isinstance(output, torch.nn.utils.rnn.PackedSequence) else output
    return [data, *(last if isinstance(last, tuple) else (last,))]


def assert_same_step(ours, theirs, x, state=None, tolerance=1e-5):
    """Results, and gradients of x, states and parameters for random ones of the results."""
    found = []
    for module, call in ((ours, on_device), (theirs, lambda m, *given: m(*given))):
        inputs = [x.clone().requires_grad_()]
        given = None
        if state is not None:
            pair = state if isinstance(state, tuple) else (state,)
            inputs += [s.clone().requires_grad_() for s in pair]
            given = tuple(inputs[1:]) if isinstance(state, tuple) else inputs[1]
        results = flat(call(module, inputs[0], given))
        loss = sum(
            (r * normal(*r.shape, dtype=r.dtype, seed=i)).sum() for i, r in enumerate(results)
        )
        wanted = [*inputs, *module.parameters()]
        found.append([*results, *torch.autograd.grad(loss, wanted)])
    for own, other in zip(*found, strict=True):
        assert own.shape == other.shape and own.dtype == other.dtype
        torch.testing.assert_close(own, other, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.usefixtures("by_each_way")
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "bias": False},
        {"num_layers": 2, "batch_first": True},
    ],
    ids=["plain", "deep", "batch_first"],
)
def test_results_and_gradients(kind, options):
    ours, theirs = twins(kind, **options)
    x = normal(STEPS, BATCH, ours.input_size)
    if ours.batch_first:
        x = x.transpose(0, 1).contiguous()
    assert_same_step(ours, theirs, x)
    assert_same_step(ours, theirs, x, state_for(ours, BATCH))


@pytest.mark.parametrize("kind", CELLS)
def test_unbatched(kind):
    ours, theirs = twins(kind, bidirectional=True)
    assert_same_step(ours, theirs, normal(STEPS, ours.input_size), state_for(ours, None))


@pytest.mark.usefixtures("by_each_way")
@pytest.mark.parametrize("kind", CELLS)
def test_bfloat16(kind):
    ours, theirs = (module.bfloat16() for module in twins(kind))
    x = normal(STEPS, BATCH, ours.input_size, dtype=torch.bfloat16)
    assert_same_step(ours, theirs, x, tolerance=3e-3)


@pytest.mark.usefixtures("by_the_kernels", "by_each_way")
@pytest.mark.parametrize("dtype", cuda_devices.TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("lengths", [None, [4, 9, 1, 6]], ids=["even", "ragged"])
def test_what_the_tests_on_a_device_compare(kind, dtype, lengths, monkeypatch):
    """Which find a difference, and none where there is none."""
    monkeypatch.setattr(cuda_devices, "WHERE", "cpu")
    monkeypatch.setattr(eager, "layer", lambda *args: None)  # which runs tensors of the host
    ours, theirs = cuda_devices.pair(kind, 5, 45, dtype, bidirectional=True)
    x = cuda_devices.normal(cuda_devices.STEPS, BATCH + 1, 5, dtype=dtype)
    states = cuda_devices.states_of(ours, BATCH + 1, dtype)
    cuda_devices.assert_same_step(ours, theirs, x, lengths, states)
    with torch.no_grad():
        theirs.weight_hh_l0_reverse[7].add_(0.5)
    with pytest.raises(AssertionError, match="relative error"):
        cuda_devices.assert_same_step(ours, theirs, x, lengths, states)


@pytest.mark.usefixtures("by_each_way")
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("is_sorted", [True, False])
def test_packed_sequences(kind, is_sorted):
    ours, theirs = twins(kind, bidirectional=True)
    lengths = [4, 2, 1] if is_sorted else [1, 4, 2]
    state = state_for(ours, BATCH)
    x = normal(STEPS, BATCH, ours.input_size)

    def padded(call, module):
        inputs = [x.clone().requires_grad_()]
        packed = pack_padded_sequence(inputs[0], lengths, enforce_sorted=is_sorted)
        output, last = call(module, packed, state)
        y, back = pad_packed_sequence(output)
        assert back.tolist() == lengths
        results = [y, *(last if isinstance(last, tuple) else (last,))]
        loss = sum((r * normal(*r.shape, seed=i)).sum() for i, r in enumerate(results))
        return [*results, *torch.autograd.grad(loss, [*inputs, *module.parameters()])]

    for own, other in zip(
        padded(on_device, ours), padded(lambda m, *given: m(*given), theirs), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_dropout_has_torchs_masks():
    ours, theirs = twins("gru", num_layers=2, dropout=0.5)
    x = normal(STEPS, BATCH, ours.input_size)
    torch.manual_seed(1)
    own = flat(on_device(ours, x))
    torch.manual_seed(1)
    torch.testing.assert_close(own, flat(theirs(x)), rtol=1e-5, atol=1e-5)


def test_autocast_computes_in_its_dtype():
    ours, theirs = twins("lstm")
    x = normal(STEPS, BATCH, ours.input_size)
    with torch.autocast("cpu", torch.bfloat16):
        output, (h, c) = on_device(ours, x)
    assert output.dtype is h.dtype is c.dtype is torch.bfloat16
    torch.testing.assert_close(output.float(), theirs(x)[0], rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", torch.float16):  # which is not that of the pass
        output.float().sum().backward()
    theirs(x)[0].sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert own.grad.dtype is torch.float32
        scale = other.grad.abs().max()
        torch.testing.assert_close(own.grad / scale, other.grad / scale, rtol=0, atol=3e-2)


def test_frozen_parameters_get_no_gradients():
    ours, theirs = twins("gru")
    x = normal(STEPS, BATCH, ours.input_size)
    for module in (ours, theirs):
        module.weight_hh_l0.requires_grad_(False)
    for module, call in ((ours, on_device), (theirs, lambda m, given: m(given))):
        call(module, x)[0].sum().backward()
    assert ours.weight_hh_l0.grad is None
    torch.testing.assert_close(ours.weight_ih_l0.grad, theirs.weight_ih_l0.grad)


def test_parameters_that_are_not_contiguous():
    ours, theirs = twins("gru")
    for name, parameter in list(ours.named_parameters()):
        wide = torch.zeros(*parameter.shape, 2)
        wide[..., 0] = parameter.detach()
        setattr(ours, name, torch.nn.Parameter(wide[..., 0]))
    assert not ours.bias_hh_l0.is_contiguous()
    assert_same_step(ours, theirs, normal(STEPS, BATCH, ours.input_size))


def test_a_float64_module_under_autocast_is_torchs():
    ours, _ = twins("gru")
    ours.double()
    with torch.autocast("cpu", torch.bfloat16):
        assert cuda.layer(ours, normal(STEPS, BATCH, 4, dtype=torch.float64), None) is None


def test_infinities_stay():
    ours, theirs = twins("rnn_relu")
    x = torch.full((STEPS, BATCH, ours.input_size), 3e38)
    torch.testing.assert_close(flat(on_device(ours, x)), flat(theirs(x)), equal_nan=True)


def test_a_pass_without_gradients_saves_nothing(emulated_library, monkeypatch):
    ours, _ = twins("lstm")
    seen = []
    monkeypatch.setattr(emulated_library, "forward", lambda own, arrays: seen.append(arrays.saved))
    with torch.no_grad():
        on_device(ours, normal(STEPS, BATCH, ours.input_size))
    on_device(ours, normal(STEPS, BATCH, ours.input_size))
    assert seen[0] is None and seen[1]


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": torch.float64},
        {"dtype": torch.float16},
        {"shape": (STEPS, BATCH, 99)},
        {"shape": (0, BATCH, 4)},
    ],
    ids=["float64", "float16", "wrong input size", "no steps"],
)
def test_the_rest_is_torchs(given):
    ours, _ = twins("gru")
    ours.to(given.get("dtype", torch.float32))
    shape = given.get("shape", (STEPS, BATCH, ours.input_size))
    assert cuda.layer(ours, normal(*shape, dtype=given.get("dtype", torch.float32)), None) is None


def test_the_report_says_what_runs(native):
    ours, _ = twins("gru")
    projected, _ = twins("lstm_projected")
    assert cuda.runs(ours.weight_ih_l0) and not cuda.runs(ours.double().weight_ih_l0)
    assert _by_torch(ours.float()) == "" and _by_torch(projected) == ""  # the host's, by the CPU's
    with torch.device("meta"):
        elsewhere = [rt.GRU(4, 5), rt.LSTM(4, 5, proj_size=3), rt.GRUCell(4, 5)]
    assert [_by_torch(module) for module in elsewhere] == ["", *["runs by torch: on meta"] * 2]


def test_errors_of_the_library(emulated_library):
    library = emulated_library
    wrong = [
        (
            {"cell": b"gru_reset_before"},
            "cell: expected one that runs on CUDA, got gru_reset_before",
        ),
        ({"dtype": b"float64"}, "dtype: expected float32 or bfloat16, got float64"),
        ({"steps": 0}, "steps, batch, hidden: expected at least 1, got 0, 2, 3"),
    ]
    for fields, message in wrong:
        sizes = {"cell": b"gru", "dtype": b"float32", "steps": 1, "batch": 2, "hidden": 3}
        with pytest.raises(RuntimeError, match=message):
            library.workspace(_cuda.Pass(**{**sizes, **fields}), False)
    assert library.saved("gru") == 4 and library.saved("nonsense") == 0
    own = _cuda.Pass(cell=b"lstm", dtype=b"float32", steps=1, batch=1, hidden=1)
    with pytest.raises(RuntimeError, match="forward: expected wx, y, hn, cn, got null"):
        library.forward(own, _cuda.Outputs())
    with pytest.raises(RuntimeError, match="backward: expected saved, da, got null"):
        library.backward(own, _cuda.Gradients())
