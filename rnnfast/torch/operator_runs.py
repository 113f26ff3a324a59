"""The computations of the registered operators, for tensors that have values.

If the weights are those of an earlier call, with the same contents, that call's stack runs at once.
For arguments that do not fit it returns NotImplemented, in a tenth of the time that the checks in
Python take. Such a call, and every first call, is checked, converted, and then run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rnnfast._native_backend import NativeBackend
from rnnfast.torch.content import ContentCache, Form
from rnnfast.torch.exchange import UNREADABLE, gradients, plain, states_of, widened
from rnnfast.torch.kinds import COMPUTED, DTYPES, Kind, native
from rnnfast.torch.operator_checks import check_backward, checked_kind
from rnnfast.torch.packs import Packs

_packs = ContentCache()

# A tape always has the size that it has with the widest vectors of any ISA, 64 bytes. Compilers
# store the size in files, which may be loaded on CPUs with shorter vectors.
_LANES = {torch.float32: 16, torch.float64: 8}


def _backend() -> NativeBackend:
    backend = native()
    if backend is None:
        raise RuntimeError("rnnfast: expected the backend native, got another")
    return backend


def _known(form: Form, weights: Sequence[Tensor], x: Tensor) -> Packs | None:
    """The packs that `_packed` gave before, for the same weights, in x's dtype; None: unknown.

    No tensor here stands for the negatives of its memory: torch gives operators a copy instead.
    """
    backend, dtype = native(), x.dtype
    if backend is None or dtype not in DTYPES or x.dim() != 3:  # others are converted first
        return None
    if not weights or weights[0].dtype is not dtype:
        return None
    return _packs.known(backend, form, tuple(weights))


def _packed(form: Form, kind: Kind, weights: Sequence[Tensor]) -> Packs:
    return _packs.get(_backend(), form, kind, [plain(weight) for weight in weights])


def _computed(tensor: Tensor | None) -> Any:
    """The tensor in a form that a stack takes: plain, and float32 if it was bfloat16."""
    return None if tensor is None else widened(plain(tensor))


def _state(h: Tensor | None, c: Tensor | None) -> Any:
    """The states in the form that a stack takes; None if there are none."""
    return h if c is None else (h, c)


@lru_cache
def _tape_row(backend: NativeBackend, kind: Kind, dtype: torch.dtype, lanes: int) -> int:
    """The tape's elements for each row of T*B; `dtype` : the tape's."""
    width, hidden, projection = kind.sizes
    hidden, projection = (-(-size // lanes) * lanes for size in (hidden, projection))
    sizes = width, hidden, projection
    return backend.tape_row(kind.cell, DTYPES[dtype], *sizes, kind.layers, kind.directions)


def tape_shape(kind: Kind, x: Tensor) -> tuple[Any]:
    """The shape of the tape of a pass over x, whose T and B may be symbols."""
    dtype = COMPUTED[x.dtype]
    return (x.shape[0] * x.shape[1] * _tape_row(_backend(), kind, dtype, _LANES[dtype]),)


def _filled(tape: Tensor, kind: Kind, x: Tensor) -> Tensor:
    """The part of a tape that the ISA in use fills."""
    count = x.shape[0] * x.shape[1] * _tape_row(_backend(), kind, tape.dtype, 1)
    return tape if tape.shape == (count,) else tape[:count]


def forward(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    form: Form,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `rnnfast.torch.operators.forward`."""
    threads = torch.get_num_threads()

    def run(packs: Packs, x: Tensor, state: Any) -> Any:
        if training:
            return packs.stack().forward(x, state, None, threads)
        return packs.stack().infer(x, state, None, None, None, threads)

    result: Any = NotImplemented
    packs = _known(form, weights, x)
    if packs is not None:
        result = run(packs, x, _state(h0, c0))
    if packs is None or result is NotImplemented:
        kind = checked_kind(x, h0, c0, weights, *form)
        packs = packs or _packed(form, kind, weights)
        result = run(packs, _computed(x), _state(_computed(h0), _computed(c0)))
    if result is NotImplemented:
        raise RuntimeError(UNREADABLE)
    y, last, *kept = result
    h, *c = states_of(last)
    tape = kept[0] if training else y.new_empty(0)
    if training:
        missing = tape_shape(packs.kind, x)[0] - len(tape)
        tape = pad(tape, (0, missing)) if missing else tape  # a `pad` by 0 would copy, too
    c_or_none = c[0] if c else y.new_empty(0)
    return _in_dtype(y, x), _in_dtype(h, x), _in_dtype(c_or_none, x), tape


def backward(
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    y: Tensor,
    tape: Tensor,
    form: Form,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """See `rnnfast.torch.operators.backward`."""
    result: Any = NotImplemented
    packs = _known(form, weights, x)
    if (
        packs is not None
        and len(wanted) == 3 + len(weights)
        and (packs.kind.has_c or (dc is None and not wanted[2]))
        and tape.dtype is x.dtype
        and tape.shape == tape_shape(packs.kind, x)
    ):
        d_state = (dh, dc) if packs.kind.has_c else dh
        given = x, _state(h0, c0), None, y, _filled(tape, packs.kind, x), dy, d_state
        result = packs.stack().backward(*given, _places(wanted), torch.get_num_threads())
        if result is not NotImplemented:
            dx, initial, parameters = result
            initial = (None,) if initial is None else states_of(initial)
    if result is NotImplemented:
        kind = checked_kind(x, h0, c0, weights, *form)
        check_backward(kind, dy, dh, dc, x, y, tape, tape_shape(kind, x), len(weights), wanted)
        dx, initial, parameters = gradients(
            (packs or _packed(form, kind, weights)).stack(),
            _computed(x),
            None if h0 is None else [_computed(s) for s in (h0, c0) if s is not None],
            None,
            _computed(y),
            _filled(plain(tape), kind, x),
            _computed(dy),
            [_computed(d) for d in ((dh, dc) if kind.has_c else (dh,))],
            _places(wanted),
        )
    dh0, *dc0 = initial
    return (
        _wanted(dx, x),
        _wanted(dh0 if wanted[1] else None, x),
        _wanted(dc0[0] if wanted[2] else None, x),
        [_wanted(d, x) for d in parameters],
    )


def _places(wanted: Sequence[bool]) -> tuple[bool, ...]:
    """`wanted` in the form that a stack takes, with one place for both states."""
    return bool(wanted[0]), bool(wanted[1] or wanted[2]), *map(bool, wanted[3:])


def _wanted(gradient: Tensor | None, x: Tensor) -> Tensor:
    return plain(x).new_empty(0) if gradient is None else _in_dtype(gradient, x)


def _in_dtype(tensor: Tensor, x: Tensor) -> Tensor:
    return tensor if tensor.dtype is x.dtype else tensor.to(x.dtype)
