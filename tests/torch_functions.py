"""Building blocks of the tests of `torch.func` and forward mode: modules as functions, in float64.

In float64 torch.nn's layers consist of operations that all transforms know.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.func import (  # noqa: E402
    functional_call,
)
from torch_twins import (  # noqa: E402
    CELLS,
    GRADIENT,
    INPUT,
    LAYERS,
    OUTPUT,
    flat,
    normal,
    twins,
)

STEPS, BATCH, SAMPLES = 3, 2, 4
DOUBLE = torch.float64
VALUE, DERIVATIVE = OUTPUT[DOUBLE], GRADIENT[DOUBLE]
EVERY = [*LAYERS, *CELLS]
SOME = ["gru", "lstm_projected", "lstm_cell"]  # one of each form of state and module
DEEP = {"num_layers": 2, "bidirectional": True}


def pair(kind, **options):
    return twins(kind, dtype=DOUBLE, **options)


def inputs(kind, *leading, batch=BATCH, seed=3):
    """Of one call, or with `leading` axes before it."""
    own = (batch,) if kind in CELLS else (STEPS, batch)
    return normal(*leading, *own, INPUT, dtype=DOUBLE, seed=seed)


def loop(run, *stacked):
    """What `vmap(run)` is to give, by calls of one sample each."""
    results = [flat(run(*parts)) for parts in zip(*stacked, strict=True)]
    return [torch.stack(parts) for parts in zip(*results, strict=True)]


def as_function(module):
    """The module as a function of its parameters and input."""
    return lambda parameters, *args: functional_call(module, parameters, args)


def parameters(module):
    return {name: p.detach() for name, p in module.named_parameters()}


def ensemble(kind, **options):
    """Stacked parameters of modules that differ, and one module of each library to call them by."""
    ours, theirs = pair(kind, **options)
    stacked = {
        name: torch.stack([p.detach() * (1 + k / 8) for k in range(SAMPLES)])
        for name, p in ours.named_parameters()
    }
    return ours, theirs, stacked
