"""Building blocks of the tests of `rnnfast.torch`: its modules beside torch.nn's."""

from __future__ import annotations

import contextlib
import importlib
from unittest import mock

import numpy as np
import pytest
from oracle import KINDS
from tolerances import TORCH, assert_close

from rnnfast import _backend
from rnnfast._cells import DTYPES

torch = pytest.importorskip("torch")
rt = importlib.import_module("rnnfast.torch")

SIZE, HIDDEN, STEPS, BATCH = 4, 5, 6, 3

# By kind: the name of the module, and the options that select it. Torch's GRU resets after.
LAYERS = {k: (c.__name__, own) for k, (c, own) in KINDS.items() if k != "gru_reset_before"}
CELLS = {f"{k}_cell": (f"{n}Cell", own) for k, (n, own) in LAYERS.items() if "proj_size" not in own}
MODULES = {**LAYERS, **CELLS}
TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPES}

# What torch.nn's modules call.
_IN_TORCH = [
    name for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for name in (kind, f"{kind}_cell")
]


def seed(number: int) -> None:
    """As torch.manual_seed, which before CUDA is up formats a stack trace each time: 10 ms."""
    torch.default_generator.manual_seed(number)


def make(place, kind: str, *sizes, **options):
    """The module of `kind` in `place`, `rt` or `torch.nn`, from the same random numbers."""
    name, own = MODULES[kind]
    seed(5)
    return getattr(place, name)(*(sizes or (SIZE, HIDDEN)), **{**own, **options})


def twins(kind: str, *sizes, **options):
    """A module of ours, and torch's with the same parameters."""
    return tuple(make(place, kind, *sizes, **options) for place in (rt, torch.nn))


def by_kernels():
    """Within it torch's own recurrent functions fail: what runs, runs by the kernels.

    On other backends than native every call is torch's own, and this does nothing.
    """
    if _backend.current().name != "native":
        return contextlib.nullcontext()
    return mock.patch.multiple(torch._VF, **{name: _refuse for name in _IN_TORCH})


def _refuse(*args, **kwargs):
    pytest.fail("torch's own implementation was called")


def normal(*shape, dtype="float64", stream=3):
    """A tensor of random numbers; `stream` tells apart those of one shape."""
    values = np.random.default_rng([stream, *shape]).standard_normal(shape)
    return torch.tensor(values, dtype=getattr(torch, dtype))


def dtype_of(module) -> str:
    """The name of the dtype of the module's parameters."""
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def state_widths(module) -> tuple[int, ...]:
    """Those of h, or of h and c."""
    width = getattr(module, "proj_size", 0) or module.hidden_size
    return (width, module.hidden_size) if "LSTM" in type(module).__name__ else (width,)


def inputs_for(module, batch=BATCH, steps=STEPS, states=True):
    """Random tensors for a call: x and the states; `batch` None: unbatched."""
    dtype, sizes = dtype_of(module), () if batch is None else (batch,)
    leading, rows = sizes, ()
    if isinstance(module, torch.nn.RNNBase):
        leading = (*sizes, steps) if module.batch_first else (steps, *sizes)
        rows = (module.num_layers * (2 if module.bidirectional else 1),)
    x = normal(*leading, module.input_size, dtype=dtype)
    if not states:
        return [x]
    widths = enumerate(state_widths(module))
    return [x, *(normal(*rows, *sizes, w, dtype=dtype, stream=4 + i) for i, w in widths)]


def arrange(x, *states):
    """The arguments of a call."""
    return (x, states[0] if len(states) == 1 else states) if states else (x,)


def flat(result) -> list:
    """The tensors of what a module returns."""
    if isinstance(result, torch.nn.utils.rnn.PackedSequence):
        return [result.data]
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def loss(results, used=None):
    """A scalar with a random gradient at each result, or at those with the indices `used`."""
    chosen = range(len(results)) if used is None else used
    dtype = str(results[0].dtype).removeprefix("torch.")
    return sum(
        (results[k] * normal(*results[k].shape, dtype=dtype, stream=50 + k)).sum() for k in chosen
    )


def run(module, tensors, arranged=arrange):
    """What a call returns, flat, from the same random numbers each time."""
    seed(11)
    return flat(module(*arranged(*tensors)))


def gradients(module, tensors, arranged=arrange, used=None):
    """The results of a call, and the gradients of `loss` at each tensor and parameter, by name."""
    own = [t.detach().clone().requires_grad_() for t in tensors]
    results = run(module, own, arranged)
    parameters = dict(module.named_parameters())
    at = {**dict(zip(("x", "h0", "c0"), own, strict=False)), **parameters}
    at = {name: t for name, t in at.items() if t.requires_grad}
    found = torch.autograd.grad(loss(results, used), list(at.values()), allow_unused=True)
    return [r.detach() for r in results], dict(zip(at, found, strict=True))


def assert_same_results(got, want, dtype: str, what: str = "forward") -> None:
    """Within the tolerance of `what`, and of the same dtypes and shapes."""
    assert [(r.dtype, r.shape) for r in got] == [(r.dtype, r.shape) for r in want]
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a.detach(), b.detach(), TORCH[dtype, what], f"{what}, result {k}")


def assert_same_gradients(got, want, dtype: str) -> None:
    """The same names, the same of them None, and the rest within the tolerance."""
    assert list(got) == list(want)
    for name, gradient in want.items():
        assert (got[name] is None) == (gradient is None), name
        if gradient is not None:
            assert got[name].dtype == gradient.dtype
            assert_close(got[name].detach(), gradient.detach(), TORCH[dtype, "backward"], name)


def assert_twins(pair, tensors, arranged=arrange, used=None) -> None:
    """A call of both gives the same: with gradients and without, by the kernels."""
    ours, theirs = pair
    dtype = dtype_of(theirs)
    want, d_want = gradients(theirs, tensors, arranged, used)
    with by_kernels():
        got, d_got = gradients(ours, tensors, arranged, used)
        with torch.no_grad():
            inferred = run(ours, tensors, arranged)
    assert_same_results(got, want, dtype)
    assert_same_results(inferred, want, dtype)
    assert not any(r.requires_grad for r in inferred)
    assert_same_gradients(d_got, d_want, dtype)


def outcome(call):
    """What the call returns, flat, or the class and text of its error."""
    try:
        return flat(call())
    except Exception as error:
        return type(error), str(error)


def assert_same_outcome(ours, theirs, dtype: str = "float32") -> None:
    """Two calls return the same, or raise the same class with the same text."""
    got, want = outcome(ours), outcome(theirs)
    if isinstance(got, tuple) or isinstance(want, tuple):
        assert got == want
    else:
        assert_same_results(got, want, dtype)
