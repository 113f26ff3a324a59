"""Mistakes with the modules of `rnnfast.torch` raise what torch.nn raises, word for word."""

from __future__ import annotations

import pytest
from torch_modules import (
    BATCH,
    CELLS,
    HIDDEN,
    LAYERS,
    MODULES,
    SIZE,
    arrange,
    assert_same_outcome,
    flat,
    inputs_for,
    rt,
    twins,
)

torch = pytest.importorskip("torch")

CONSTRUCTORS = {
    "nothing": ((), {}),
    "no hidden size": ((SIZE,), {}),
    "an unknown option": ((SIZE, HIDDEN), {"colour": "red"}),
    "an input size of zero": ((0, HIDDEN), {}),
    "a hidden size of zero": ((SIZE, 0), {}),
    "a hidden size below zero": ((SIZE, -1), {}),
    "a hidden size of a float": ((SIZE, 5.0), {}),
    "an input size of a string": (("4", HIDDEN), {}),
    "a bias that is no bool": ((SIZE, HIDDEN), {"bias": 1}),
    "batch_first that is no bool": ((SIZE, HIDDEN), {"batch_first": 1}),
    "no layers": ((SIZE, HIDDEN), {"num_layers": 0}),
    "dropout above 1": ((SIZE, HIDDEN), {"dropout": 1.5}),
    "dropout below 0": ((SIZE, HIDDEN), {"dropout": -0.5}),
    "dropout that is a bool": ((SIZE, HIDDEN), {"dropout": True}),
    "a projection": ((SIZE, HIDDEN), {"proj_size": 3}),
    "a projection below zero": ((SIZE, HIDDEN), {"proj_size": -1}),
    "a projection that is too wide": ((SIZE, HIDDEN), {"proj_size": HIDDEN}),
    "an unknown nonlinearity": ((SIZE, HIDDEN), {"nonlinearity": "sine"}),
    "a dtype of integers": ((SIZE, HIDDEN), {"dtype": torch.int64}),
    "a dtype that is none": ((SIZE, HIDDEN), {"dtype": "float32"}),
    "a device that is none": ((SIZE, HIDDEN), {"device": "abacus"}),
    "too many arguments": ((SIZE, HIDDEN, 1, True, False, 0.0, False, 0, None, None, 1), {}),
}
NAMES = sorted({name for name, _ in MODULES.values()})


@pytest.mark.parametrize("mistake", CONSTRUCTORS)
@pytest.mark.parametrize("name", NAMES)
def test_constructors(name, mistake):
    args, options = CONSTRUCTORS[mistake]

    def made(place):
        module = getattr(place, name)(*args, **options)
        return [torch.tensor(p.shape) for p in module.parameters()]

    assert_same_outcome(lambda: made(rt), lambda: made(torch.nn))


def test_a_warning_of_dropout_without_effect():
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        rt.GRU(SIZE, HIDDEN, dropout=0.5)


def of(tensors, change, index=1):
    """The tensors with one of them changed."""
    return [change(t) if k == index else t for k, t in enumerate(tensors)]


def another_batch(t):
    return torch.cat([t, t], max(-2, -t.dim()))


# From the tensors of a right call, its arguments with a mistake.
CALLS = {
    "no arguments": lambda x, *s: (),
    "too many arguments": lambda x, *s: (x, None, None),
    "an input of None": lambda x, *s: (None,),
    "an input that is a list": lambda x, *s: (x.tolist(),),
    "an input that is an array": lambda x, *s: (x.numpy(),),
    "an input of one number": lambda x, *s: (x.sum(),),
    "an input of one dimension": lambda x, *s: (x.flatten(),),
    "an input of four dimensions": lambda x, *s: (x[None, None] if x.dim() == 2 else x[None],),
    "an input too wide": lambda x, *s: (torch.cat([x, x], -1),),
    "an input of no width": lambda x, *s: (x[..., :0],),
    "an input of doubles": lambda x, *s: (x.double(),),
    "an input of integers": lambda x, *s: (x.long(),),
    "an input of halves": lambda x, *s: (x.half(),),
    "an input of bfloat16": lambda x, *s: (x.bfloat16(),),
    "an input of complex numbers": lambda x, *s: (x.to(torch.complex64),),
    "a sparse input": lambda x, *s: (x.to_sparse(),),
    "an input on meta": lambda x, *s: (x.to("meta"),),
    "states of doubles": lambda x, *s: arrange(x, *(t.double() for t in s)),
    "h of doubles": lambda x, *s: arrange(x, *of(s, torch.Tensor.double, 0)),
    "c of doubles": lambda x, *s: arrange(x, *of(s, torch.Tensor.double)),
    "h of another batch": lambda x, *s: arrange(x, *of(s, another_batch, 0)),
    "c of another batch": lambda x, *s: arrange(x, *of(s, another_batch)),
    "h too narrow": lambda x, *s: arrange(x, *of(s, lambda t: t[..., :-1], 0)),
    "c too narrow": lambda x, *s: arrange(x, *of(s, lambda t: t[..., :-1])),
    "h of one dimension less": lambda x, *s: arrange(x, *of(s, lambda t: t[0], 0)),
    "c of one dimension less": lambda x, *s: arrange(x, *of(s, lambda t: t[0])),
    "h of one dimension more": lambda x, *s: arrange(x, *of(s, lambda t: t[None], 0)),
    "states of one dimension less": lambda x, *s: arrange(x, *(t[0] for t in s)),
    "h of more layers": lambda x, *s: arrange(x, *of(s, lambda t: torch.cat([t, t]), 0)),
    "states in a tuple": lambda x, *s: (x, s),
    "a state alone": lambda x, *s: (x, s[0]),
    "three states": lambda x, *s: (x, (s[0], s[-1], s[0])),
    "a state of None": lambda x, *s: (x, (s[0], None)),
    "a state that is a number": lambda x, *s: (x, 0.0),
    "states that are a stack": lambda x, *s: (x, torch.stack([s[0], s[0]])),
}


@pytest.mark.parametrize("mistake", CALLS)
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}], ids=len)
@pytest.mark.parametrize("kind", LAYERS)
def test_calls_of_layers(kind, options, mistake):
    pair = twins(kind, **options)
    for batch in (BATCH, None):
        args = CALLS[mistake](*inputs_for(pair[1], batch))
        assert_same_outcome(*(lambda m=m, a=args: m(*a) for m in pair))


@pytest.mark.parametrize("mistake", CALLS)
@pytest.mark.parametrize("kind", CELLS)
def test_calls_of_cells(kind, mistake):
    pair = twins(kind)
    for batch in (BATCH, None):
        args = CALLS[mistake](*inputs_for(pair[1], batch))
        assert_same_outcome(*(lambda m=m, a=args: m(*a) for m in pair))


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_no_steps(kind, states):
    pair = twins(kind)
    for batch in (BATCH, None):
        args = arrange(*inputs_for(pair[1], batch, 0, states))
        assert_same_outcome(*(lambda m=m, a=args: m(*a) for m in pair))


# Weights that are not what the constructor made of them.
WEIGHTS = {
    "another dtype": lambda m, name: m.double(),
    "one of another dtype": lambda m, name: replaced(m, name, getattr(m, name).double()),
    "one of another shape": lambda m, name: replaced(m, name, getattr(m, name)[:-1]),
    "one of another dimension": lambda m, name: replaced(m, name, getattr(m, name)[None]),
    "one of None": lambda m, name: setattr(m, name, None),
    "one that is no parameter": lambda m, name: setattr(m, name, getattr(m, name).detach()),
    "one that is transposed": lambda m, name: replaced(
        m, name, getattr(m, name).t().contiguous().t()
    ),
}


def replaced(module, name, tensor):
    setattr(module, name, torch.nn.Parameter(tensor.detach()))


@pytest.mark.parametrize("mistake", WEIGHTS)
@pytest.mark.parametrize("kind", MODULES)
def test_weights(kind, mistake):
    pair = twins(kind)
    args = arrange(*inputs_for(pair[1]))
    names = [name for name, _ in pair[1].named_parameters()]

    def changed(module, name):
        WEIGHTS[mistake](module, name)
        return module(*args)

    for name in (names[0], names[-1]):
        pair = twins(kind)
        assert_same_outcome(*(lambda m=m, n=name: changed(m, n) for m in pair))


@pytest.mark.parametrize("kind", MODULES)
def test_load_state_dict(kind):
    ours, theirs = twins(kind)
    state = theirs.state_dict()
    first = next(iter(state))
    for wrong in (
        {},
        {**state, "other": state[first]},
        {**state, first: state[first][:-1]},
        {name: value for name, value in state.items() if name != first},
    ):
        calls = (lambda m=m, w=wrong: flat(m.load_state_dict(w)) for m in (ours, theirs))
        assert_same_outcome(*calls)


@pytest.mark.parametrize("nonlinearity", ["relu", "sine"])
@pytest.mark.parametrize("kind", ["rnn_tanh", "rnn_tanh_cell"])
def test_another_nonlinearity_set_later(kind, nonlinearity):
    pair = twins(kind)
    args = arrange(*inputs_for(pair[1]))
    for module in pair:
        module(*args)
        module.nonlinearity = nonlinearity
        module.mode = f"RNN_{nonlinearity.upper()}"
    assert_same_outcome(*(lambda m=m: m(*args) for m in pair))


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_without_one_of_its_weights(kind):
    pair = twins(kind)
    args = arrange(*inputs_for(pair[1]))
    for module in pair:
        del module.weight_hh
    assert_same_outcome(*(lambda m=m: m(*args) for m in pair))
