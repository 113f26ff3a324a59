"""What few programs do with the modules of `rnnfast.torch`, and two threads with one of them."""

from __future__ import annotations

import gc
import importlib

import pytest
from tolerances import BFLOAT16, assert_close
from torch_modules import (
    CELLS,
    LAYERS,
    SIZE,
    TORCH_DTYPES,
    arrange,
    assert_same_gradients,
    assert_same_results,
    assert_twins,
    by_kernels,
    flat,
    gradients,
    inputs_for,
    make,
    normal,
    rt,
    seed,
    twins,
)

from rnnfast._native_backend import NativeBackend

torch = pytest.importorskip("torch")
eager, operator_runs, packs, steps = (
    importlib.import_module(f"rnnfast.torch.{name}")
    for name in ("eager", "operator_runs", "packs", "steps")
)

F64 = TORCH_DTYPES["float64"]


# ---- Classes and modules ------------------------------------------------------------------------


def filled(base, **options):
    """A module of a class derived from `base` that fills its parameters in its own way."""

    class Filled(base):
        def reset_parameters(self):
            for parameter in self.parameters():
                torch.nn.init.normal_(parameter)

    return Filled(3, 2, **options)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_class_with_its_own_reset_parameters(name, options):
    found = []
    for place in (rt, torch.nn):
        seed(5)
        found.append((filled(getattr(place, name), **options).state_dict(), torch.rand(1)))
    (got, after), (want, after_theirs) = found
    assert list(got) == list(want)
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert torch.equal(after, after_theirs)  # no other random numbers were drawn
    with rt.patch():
        seed(5)
        patched = filled(getattr(torch.nn, name), **options)
    assert isinstance(patched, getattr(rt, name))
    assert all(torch.equal(value, want[key]) for key, value in patched.state_dict().items())


@pytest.mark.parametrize("kind", ["gru", "gru_cell"])
def test_a_report_of_weights_that_are_buffers(kind, native):
    module = make(rt, kind)
    for name, parameter in list(module.named_parameters()):
        delattr(module, name)
        module.register_buffer(name, parameter.detach())
    assert rt.report(module)[0].reason == ""


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_a_module_that_is_cut_to_fewer_inputs(kind, native):
    """After calls of its first size: torch's error until the weights are cut too."""
    pair = twins(kind)
    for module in pair:
        x, *states = inputs_for(module)
        module(*arrange(x, *states))
        module.input_size -= 1
        if kind in LAYERS:  # cells look at the weights alone
            with pytest.raises(RuntimeError, match="input"):
                module(*arrange(x, *states))
        with torch.no_grad():
            name = next(n for n, _ in module.named_parameters() if "ih" in n)
            narrow = getattr(module, name)[:, :-1].clone()
        setattr(module, name, torch.nn.Parameter(narrow))
    tensors = [x[..., :-1].contiguous(), *states]
    with by_kernels():
        pair[0](*arrange(*tensors))
    assert_twins(pair, tensors)


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_module_that_is_made_anew(kind, options):
    """Its constructor called once more, after a call."""
    ours, theirs = twins(kind, dtype=F64)
    x, *_ = inputs_for(ours)
    for module in (ours, theirs):
        module(x)
        seed(6)
        module.__init__(SIZE, module.hidden_size, dtype=F64, **LAYERS[kind][1], **options)
    assert_same_results(flat(ours(x)), flat(theirs(x)), "float64")


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_weights_and_input_of_torchs_zeros(kind):
    """Tensors that have no memory."""
    for place in (0, 1):
        ours, theirs = twins(kind, dtype=F64)
        x, *states = inputs_for(ours)
        for module in (ours, theirs):
            name, weight = next(iter(module.named_parameters()))
            zeros = torch._efficientzerotensor(weight.shape, dtype=weight.dtype)
            if place:
                setattr(module, name, torch.nn.Parameter(zeros))
        if not place:
            x = torch._efficientzerotensor(x.shape, dtype=x.dtype)
        got, want = (flat(module(*arrange(x, *states))) for module in (ours, theirs))
        assert_same_results(got, want, "float64")


@pytest.mark.parametrize("kind", ["lstm", "lstm_cell"])
def test_a_state_that_is_none_where_calls_are_transformed(kind):
    texts = []
    for module in twins(kind):
        x, h, _ = inputs_for(module)

        def total(x, module=module, h=h):
            return flat(module(x, (h, None)))[0].sum()

        with pytest.raises(Exception) as caught:
            torch.func.grad(total)(x)
        texts.append((caught.type, str(caught.value)))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm", "lstm_cell"])
def test_autocast_of_another_device_leaves_calls_to_the_kernels(kind, native):
    ours, theirs = twins(kind)
    tensors = inputs_for(theirs)
    torch.set_autocast_enabled("cuda", True)
    try:
        with by_kernels():
            got, d_got = gradients(ours, tensors)
    finally:
        torch.set_autocast_enabled("cuda", False)
    want, d_want = gradients(theirs, tensors)
    assert_same_results(got, want, "float32")
    assert_same_gradients(d_got, d_want, "float32")


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=["bias", "none"])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_of_more_rows_than_read_weights_where_they_lie(kind, options, states, dtype, native):
    """So that they are packed, and noticed when they change."""
    pair = twins(kind, dtype=TORCH_DTYPES[dtype], **options)
    for change in (1.0, -2.0):
        for module in pair:
            module.weight_hh.data.mul_(change)
        assert_twins(pair, inputs_for(pair[1], batch=native.few_rows() + 3, states=states))


# ---- Threads ------------------------------------------------------------------------------------


class Dropped:
    """A holder whose `shared` another thread drops as soon as it has been looked at."""

    def __init__(self) -> None:
        self._value = self.lone = None

    @property
    def shared(self):
        value, self._value = self._value, None
        return value

    @shared.setter
    def shared(self, value):
        self._value = value


def test_what_steps_share_may_be_dropped_by_another_thread(native):
    ours, theirs = twins("gru_cell", dtype=F64)
    x = normal(3, 4)
    parameters, weights = eager._ready(ours, x, None)
    holder, call = Dropped(), eager.Call(parameters, parameters.packed(weights))
    steps.record(holder, call, weights, x, None)[0].sum().backward()
    assert holder.shared is None
    theirs(x).sum().backward()
    found = [{name: p.grad for name, p in m.named_parameters()} for m in (ours, theirs)]
    assert_same_gradients(*found, "float64")


# ---- Operators ----------------------------------------------------------------------------------


def through_operators(module, x):
    with torch.no_grad():
        return torch.func.vmap(lambda own: module(own)[0])(x.unsqueeze(0))


def test_the_operators_keep_the_packs_of_all_modules_that_live(native, monkeypatch):
    made, pack = [], NativeBackend.pack
    monkeypatch.setattr(NativeBackend, "pack", lambda *args: made.append(1) or pack(*args))
    modules, x = [make(rt, "gru", 4, 4) for _ in range(30)], normal(5, 2, 4, dtype="float32")
    for _ in range(2):
        for module in modules:
            through_operators(module, x)
    assert len(made) == len(modules)
    del module
    modules.clear()
    gc.collect()
    module = make(rt, "rnn_tanh", 4, 4)
    through_operators(module, x)  # which packs
    assert all(kept.is_live() for kept in operator_runs._packs._kept.values())


@pytest.mark.parametrize("kind", [k for k in LAYERS if k != "rnn_relu"])
def test_third_derivatives_of_the_operators(kind):
    module = make(rt, kind, 2, 4, dtype=F64)
    weights, lstm = [p.detach() for p in module.parameters()], "lstm" in kind
    states = [normal(1, 1, 4) for _ in range(2 if lstm else 1)]
    if "projected" in kind:
        states[0] = normal(1, 1, module.proj_size)
    h0, c0 = (*states, None)[:2]
    cell = "lstm" if lstm else kind

    def gradient(x):
        y = torch.ops.rnnfast.forward(x, h0, c0, weights, cell, 1, True, True)[0]
        return torch.autograd.grad(y.sin().sum(), x, create_graph=True)[0]

    x = normal(2, 1, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(gradient, (x,))


def shape_of(kind):
    return (3, 2, SIZE) if kind in LAYERS else (2, SIZE)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
@pytest.mark.parametrize("lowered", ["weight_ih", "weight_hh", "weight", "bias"])
def test_autocast_of_parameters_in_two_dtypes(kind, lowered):
    """They are torch's to compute with."""
    found = []
    for module in twins(kind):
        for name, p in module.named_parameters():
            if name.startswith(lowered):
                p.data = p.data.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            found.append(flat(module(normal(*shape_of(kind), dtype="float32"))))
    for got, want in zip(*found, strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
def test_autocast_of_a_parametrization_that_is_a_product(kind, name):
    """Its products are in float32, as all that is not an operand of the module's own."""
    x = normal(*shape_of(kind), dtype="float32")
    ours, theirs = twins(kind)
    name += "_l0" if kind in LAYERS else ""
    for module in (ours, theirs):
        torch.nn.utils.parametrizations.orthogonal(module, name)
    weight, made = getattr(ours, name), []
    ours.parametrizations[name].register_forward_hook(lambda *call: made.append(call[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        got, want = flat(ours(x)), flat(theirs(x))
    assert made and all(torch.equal(one, weight) for one in made)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert_close(a.detach().float(), b.detach().float(), BFLOAT16)
