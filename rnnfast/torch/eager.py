"""How a module's call is run: by the kernels where they cover it, else not at all.

What returns None leaves the call to torch's own implementation, which either covers it or raises
torch's own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from rnnfast.torch import cells
from rnnfast.torch.arrays import States, requires_grad
from rnnfast.torch.autograd import Call, Ragged, infer, record
from rnnfast.torch.packs import DTYPES, Kind, PackCache, Packs, native

if TYPE_CHECKING:
    from rnnfast.torch.modules import Cell, Layer

_TENSORS = frozenset({Tensor, Parameter})
_DTYPES = frozenset(DTYPES)

_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch.is_autocast_enabled
_is_tracing = torch._C._get_tracing_state
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack


def is_transformed() -> bool:
    """Whether tensors stand for others, as under `torch.func` and tracers of operators."""
    return _transforms_active() or _dispatch_modes() > 0


def is_plain(input: Tensor) -> bool:
    """Whether the kernels take such input, as far as that shows without its shape."""
    return (
        type(input) in _TENSORS
        and input.dtype in _DTYPES
        and input.is_cpu
        and input.layout is torch.strided
        and input.numel() > 0
        and not input.is_neg()
        and _is_tracing() is None
        and forward_ad._current_level < 0
    )


def are_plain(states: Sequence[Any] | None, dtype: torch.dtype) -> bool:
    """The same of states (h,) or (h, c)."""
    return states is None or all(
        type(s) in _TENSORS and s.dtype is dtype and s.is_cpu and not s.is_neg() for s in states
    )


def packs_of(module: Layer | Cell, kind: Kind, weights: Sequence[Tensor]) -> Packs | None:
    """The module's packed weights; None where they are none that the kernels take."""
    backend = native()
    if backend is None:
        return None
    return PackCache.of(module).get(backend, kind, weights)


def layer(
    module: Layer, input: Tensor | PackedSequence, states: Sequence[Tensor] | None
) -> tuple[Tensor, States] | None:
    """Output (packed: its data) and last states of a layer.

    states : (h,) or (h, c), in the order of the input's sequences.
    """
    kind = module._kind()
    weights = module._weights()
    ragged = None
    x = input
    if isinstance(input, PackedSequence):
        x = input.data
        if x.dim() != 2 or not is_plain(x) or x.shape[1] != kind.sizes.input:
            return None
        ragged = Ragged(input.batch_sizes)
    elif not is_plain(x) or x.dim() not in (2, 3):
        return None
    if not are_plain(states, x.dtype):
        return None
    packs = packs_of(module, kind, weights)
    if packs is None or weights[0].dtype is not x.dtype:
        return None
    if module.training and module.dropout and kind.layers > 1:
        return _with_dropout(module, kind, packs, x, ragged, states, weights)
    batch_first = module.batch_first and ragged is None
    call = Call(packs.stack(batch_first), kind, ragged, batch_first)
    return _run(call, x, states, weights)


def cell(
    module: Cell, x: Tensor, states: Sequence[Tensor] | None
) -> tuple[Tensor, States] | None:
    """h, and the states (h,) or (h, c), of a cell."""
    if not is_plain(x) or not are_plain(states, x.dtype):
        return None
    weights = module._weights()
    kind = module._kind()
    packs = packs_of(module, kind, weights)
    if packs is None or weights[0].dtype is not x.dtype:
        return None
    if not _is_grad_enabled() or not needs_gradients(x, states, weights):
        call = Call(packs.stack(), kind)
        return infer(call, x, states) or infer(call, x.contiguous(), _contiguous(states))
    holder = PackCache.of(module)
    last = cells.record(holder, packs, kind, x, states, weights)
    if last is None:
        x, states = x.contiguous(), _contiguous(states)
        last = cells.record(holder, packs, kind, x, states, weights)
    return None if last is None else (last[0], last)


def _run(
    call: Call, x: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor]
) -> tuple[Tensor, States] | None:
    if not _is_grad_enabled() or not needs_gradients(x, states, weights):
        return infer(call, x, states) or infer(call, x.contiguous(), _contiguous(states))
    return record(call, x, states, weights) or record(
        call, x.contiguous(), _contiguous(states), weights
    )


def needs_gradients(
    x: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor]
) -> bool:
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
