"""How a module's call is run outside of compilers and transforms: by the kernels, or not at all.

What returns None leaves the call to torch's own implementation, which either covers it or raises
torch's own error. A call of a small layer takes about as long here as in its kernel, so what is
asked for in each call is asked once, and by what takes least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from rnnfast.torch import cells
from rnnfast.torch.arrays import States, requires_grad
from rnnfast.torch.autograd import Call, Ragged, infer, record
from rnnfast.torch.packs import DTYPES, TENSORS, Kind, PackCache, Packs

if TYPE_CHECKING:
    from rnnfast.torch.modules import Cell, Layer

_DTYPES = frozenset(DTYPES)

_is_grad_enabled = torch.is_grad_enabled
_tracing_state = torch._C._get_tracing_state


def _is_plain(x: Any) -> bool:
    """Whether the kernels take such a tensor, as far as that shows without its shape."""
    return (
        type(x) in TENSORS
        and x.dtype in _DTYPES
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
    )


def _runs_here(x: Any) -> bool:
    return (
        _is_plain(x)
        and x.numel() > 0
        and _tracing_state() is None
        and forward_ad._current_level < 0
    )


def _is_ragged(batch_sizes: Tensor, rows: int) -> bool:
    """Whether they are of so many rows of packed data; a PackedSequence made by hand may not be."""
    if batch_sizes.dtype is not torch.int64 or not batch_sizes.is_cpu or batch_sizes.dim() != 1:
        return False
    sizes = batch_sizes.numpy()
    falls = bool((sizes[1:] <= sizes[:-1]).all())
    return len(sizes) > 0 and falls and bool(sizes[-1] > 0) and int(sizes.sum()) == rows


def _prepared(
    module: Layer | Cell, x: Any, states: Sequence[Tensor] | None
) -> tuple[Packs, Sequence[Tensor]] | None:
    """The module's packed weights, and what they are of, if they go with x and the states."""
    if not _runs_here(x):
        return None
    cache = PackCache.of(module)
    weights = module._weights(cache)
    packs = cache.get(module._kind(cache), weights)
    if packs is None or not _have_dtype(x, states, weights):
        return None
    return packs, weights


def layer(
    module: Layer, input: Tensor | PackedSequence, states: Sequence[Tensor] | None
) -> tuple[Tensor, States] | None:
    """Output (packed: its data) and last states of a layer.

    states : (h,) or (h, c), in the order of the input's sequences.
    """
    ragged = None
    x: Any = input
    if isinstance(input, PackedSequence):
        x = input.data
    elif type(input) in TENSORS and input.dim() not in (2, 3):
        return None
    ready = _prepared(module, x, states)
    if ready is None:
        return None
    packs, weights = ready
    kind = packs.kind
    if x is not input:
        if x.dim() != 2 or x.shape[1] != kind.sizes.input:
            return None
        if not _is_ragged(input.batch_sizes, len(x)):
            return None
        ragged = Ragged(input.batch_sizes)
    if kind.layers > 1 and module.training and module.dropout:
        return _with_dropout(module, kind, packs, x, ragged, states, weights)
    batch_first = module.batch_first and ragged is None
    return _run(Call(packs.stack(batch_first), kind, ragged, batch_first), x, states, weights)


def cell(module: Cell, x: Any, states: Sequence[Tensor] | None) -> States | None:
    """The states (h,) or (h, c) of a cell after its step."""
    ready = _prepared(module, x, states)
    if ready is None:
        return None
    packs, weights = ready
    kind = packs.kind
    if not _is_grad_enabled() or not _need_gradients(x, states, weights):
        call = Call(packs.stack(), kind)
        result = infer(call, x, states) or infer(call, x.contiguous(), _contiguous(states))
        return None if result is None else result[1]
    if weights[0].is_inference():  # which torch refuses to save for backward
        return None
    cache = PackCache.of(module)
    return cells.record(cache, packs, kind, x, states, weights) or cells.record(
        cache, packs, kind, x.contiguous(), _contiguous(states), weights
    )


def _have_dtype(x: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor]) -> bool:
    dtype = x.dtype
    if weights[0].dtype is not dtype:
        return False
    return states is None or all(_is_plain(s) and s.dtype is dtype for s in states)


def _run(
    call: Call, x: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor]
) -> tuple[Tensor, States] | None:
    if not _is_grad_enabled() or not _need_gradients(x, states, weights):
        return infer(call, x, states) or infer(call, x.contiguous(), _contiguous(states))
    return record(call, x, states, weights) or record(
        call, x.contiguous(), _contiguous(states), weights
    )


def _need_gradients(x: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor]) -> bool:
    """Whether any of them takes part in differentiation."""
    return (
        weights[0].requires_grad
        or x.requires_grad
        or any(map(requires_grad, weights))
        or (states is not None and any(map(requires_grad, states)))
    )


def _contiguous(states: Sequence[Tensor] | None) -> States | None:
    return None if states is None else tuple(s.contiguous() for s in states)


def _with_dropout(
    module: Layer,
    kind: Kind,
    packs: Packs,
    x: Tensor,
    ragged: Ragged | None,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, States] | None:
    """Layer by layer, with torch's dropout in between: the same masks from the same seed."""
    unbatched = x.dim() == 2 and ragged is None
    swapped = module.batch_first and ragged is None and not unbatched
    if unbatched:
        x = x.unsqueeze(1)
        states = None if states is None else [s.unsqueeze(1) for s in states]
    elif swapped:
        x = x.transpose(0, 1)
    directions = kind.directions
    per_layer = len(weights) // kind.layers
    if states is not None and any(
        s.dim() != 3 or len(s) != kind.layers * directions for s in states
    ):
        return None
    last = []
    for index in range(kind.layers):
        rows = slice(index * directions, (index + 1) * directions)
        own = None if states is None else tuple(s[rows] for s in states)
        call = Call(packs.layer(index), kind.layer(index), ragged)
        of_layer = weights[index * per_layer : (index + 1) * per_layer]
        result = _run(call, x, own, of_layer)
        if result is None:
            return None
        x, h = result
        last.append(h)
        if index < kind.layers - 1:
            x = torch.dropout(x, module.dropout, True)
    ends = tuple(torch.cat(parts) for parts in zip(*last, strict=True))
    if unbatched:
        return x.squeeze(1), tuple(end.squeeze(1) for end in ends)
    return (x.transpose(0, 1) if swapped else x), ends
