"""Layers on CUDA tensors: the recurrence by the library of CUDA kernels, products by torch.

Where `layer` returns None, torch's own implementation runs the call, by cuDNN: for other dtypes
than float32 and bfloat16, for projections, without the library or on devices that it has no code
for, and where torch traces or transforms the call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnfast import _config, _cuda
from rnnfast._cells import Sizes
from rnnfast.torch import differentiable
from rnnfast.torch.exchange import TENSORS, States, are_for_torch, is_as_it_lies
from rnnfast.torch.kinds import Kind

if TYPE_CHECKING:
    from rnnfast.torch.modules import Layer

_tracing_state = torch._C._get_tracing_state

DTYPES = {torch.float32: b"float32", torch.bfloat16: b"bfloat16"}


def library() -> _cuda.Library | None:
    """The library of CUDA kernels; None if it or a device is missing."""
    return _cuda.library(_config.version())


def _is_on_device(x: Tensor) -> bool:
    """Whether x lies on a CUDA device."""
    return x.is_cuda


def _on_stream(x: Tensor) -> tuple[contextlib.AbstractContextManager[Any], int]:
    """A context in which x's device is the current one, and the current stream of that device."""
    return torch.cuda.device(x.device), torch.cuda.current_stream(x.device).cuda_stream


# The answers of `lacks`: each library is asked once about each device.
_lacking: dict[tuple[_cuda.Library, torch.device], str] = {}


def lacks(x: Tensor) -> str:
    """Why the kernels do not run on the CUDA device where x lies; empty if they do."""
    found = library()
    if found is None:
        return _cuda.describe(_config.version())
    known = _lacking.get((found, x.device))
    if known is None:
        with _on_stream(x)[0]:
            known = _lacking[found, x.device] = found.lacks()
    return known


def runs(weight: Tensor) -> bool:
    """Whether layers with such weights, and without a projection, run by these kernels."""
    return weight.dtype in DTYPES and _is_on_device(weight) and not lacks(weight)


def layer(
    module: Layer, input: Tensor | PackedSequence, states: Sequence[Tensor] | None
) -> tuple[Tensor | PackedSequence, States] | None:
    """A layer's output and last states (h,) or (h, c), in its own layout; None: left to torch."""
    x = input.data if isinstance(input, PackedSequence) else input
    if type(x) not in TENSORS or not _is_on_device(x) or lacks(x):
        return None
    if _tracing_state() is not None or forward_ad._current_level >= 0:
        return None
    weights = [getattr(module, name) for name in module._flat_weights_names]
    is_cast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if is_cast else x.dtype
    if dtype not in DTYPES or module.proj_size or not x.numel():
        return None
    taken = DTYPES if is_cast else (dtype,)
    for t in (x, *weights, *(states or ())):
        if not is_as_it_lies(t) or t.dtype not in taken or t.device != x.device:
            return None
    if is_cast:
        x, weights = x.to(dtype), [w.to(dtype) for w in weights]
        states = None if states is None else [s.to(dtype) for s in states]
    if isinstance(input, PackedSequence):
        return _packed(module, input, x, states, weights)
    unbatched, swapped = x.dim() == 2, module.batch_first
    if unbatched:
        x, swapped = x.unsqueeze(1), False
        states = None if states is None else [s.unsqueeze(1) for s in states]
    if swapped and x.dim() == 3:
        x = x.transpose(0, 1)
    if not _fit(module, x, states):
        return None
    y, last = _layers(module, x, states, weights, None)
    if unbatched:
        return y.squeeze(1), tuple(s.squeeze(1) for s in last)
    return (y.transpose(0, 1) if swapped else y), last


def _packed(
    module: Layer,
    input: PackedSequence,
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
) -> tuple[PackedSequence, States] | None:
    """`layer` for packed sequences, which torch orders by length; x : their data."""
    padded, lengths = pad_packed_sequence(PackedSequence(x, input.batch_sizes))
    if states is not None and input.sorted_indices is not None:
        if any(s.dim() != 3 for s in states):
            return None
        states = [s.index_select(1, input.sorted_indices) for s in states]
    if not _fit(module, padded, states):
        return None
    on_device = lengths.to(x.device, torch.int32)
    y, last = _layers(module, padded, states, weights, on_device)
    if input.unsorted_indices is not None:
        last = tuple(s.index_select(1, input.unsorted_indices) for s in last)
    data = pack_padded_sequence(y, lengths).data
    return PackedSequence(data, *input[1:]), last


def _fit(module: Layer, x: Tensor, states: Sequence[Tensor] | None) -> bool:
    """Whether x (T, B, I) and the states have the shapes that the module takes."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    return (
        x.dim() == 3
        and x.shape[2] == module.input_size
        and all(s.shape == (rows, x.shape[1], module.hidden_size) for s in states or ())
    )


def _layers(
    module: Layer,
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, States]:
    """Runs all layers and directions, with torch's dropout in between."""
    directions = 2 if module.bidirectional else 1
    rows = module.num_layers * directions
    of_row = len(weights) // rows
    ends = []
    for index in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            row = index * directions + direction
            own = (None, None) if states is None else (*(s[row] for s in states), None)[:2]
            w_ih, w_hh, *biases = weights[row * of_row : (row + 1) * of_row]
            form = _Form(module._cell(), bool(direction), lengths)
            given = form, x, *own, w_ih, w_hh, *(biases or (None, None))
            if torch.is_grad_enabled():
                y, *last = _Pass.apply(*given)
            else:
                (y, *last), _ = _forward(*given, saves=False)
            outputs.append(y)
            ends.append(last)
        x = outputs[0] if directions == 1 else torch.cat(outputs, 2)
        if module.training and module.dropout and index < module.num_layers - 1:
            x = torch.dropout(x, module.dropout, True)
    return x, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))


class _Form(NamedTuple):
    """What a pass computes: a name in `CELLS`, the direction, and the rows' lengths (B), if any."""

    cell: str
    reverse: bool
    lengths: Tensor | None


def _pass_of(form: _Form, w_hh: Tensor, steps: int, batch: int) -> _cuda.Pass:
    lengths = None if form.lengths is None else form.lengths.data_ptr()
    return _cuda.Pass(
        cell=form.cell.encode(),
        dtype=DTYPES[w_hh.dtype],
        steps=steps,
        batch=batch,
        hidden=w_hh.shape[1],
        reverse=form.reverse,
        lengths=lengths,
        weight_hh=w_hh.data_ptr(),
    )


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _run(own: _cuda.Pass, arrays: _cuda.Outputs | _cuda.Gradients, near: Tensor) -> None:
    """Puts the pass on the current stream of the device where `near` lies."""
    found = library()
    assert found is not None
    device, own.stream = _on_stream(near)
    with device:
        size = found.workspace(own, isinstance(arrays, _cuda.Gradients))
        workspace = torch.empty(size, dtype=torch.uint8, device=near.device)
        own.workspace = workspace.data_ptr()
        if isinstance(arrays, _cuda.Gradients):
            found.backward(own, arrays)
        else:
            found.forward(own, arrays)


def _forward(
    form: _Form,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    *,
    saves: bool,
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Runs one layer in one direction.

    Returns the outputs y (T, B, H), hn (B, H) and, if the cell has it, cn (B, H); and the values
    that backward reads besides, or None if not `saves`.
    """
    steps, batch, _ = x.shape
    rows = x.reshape(steps * batch, -1)
    wx = rows @ w_ih.t() if b_ih is None else torch.addmm(b_ih, rows, w_ih.t())
    # These names hold the copies until the pass is on the stream. Otherwise torch could reuse their
    # memory for the workspace.
    h0, c0, w_hh, b_hh = _contiguous(h0), _contiguous(c0), w_hh.contiguous(), _contiguous(b_hh)
    hidden = w_hh.shape[1]
    y, hn = x.new_empty(steps, batch, hidden), x.new_empty(batch, hidden)
    cn = x.new_empty(batch, hidden) if form.cell == "lstm" else None
    saved = None
    if saves:
        found = library()
        assert found is not None
        saved = x.new_empty(steps * batch, found.saved(form.cell) * hidden)
    own = _pass_of(form, w_hh, steps, batch)
    own.bias_hh, own.h0, own.c0 = map(_pointer, (b_hh, h0, c0))
    _run(own, _cuda.Outputs(*map(_pointer, (wx, y, hn, cn, saved))), x)
    return ((y, hn) if cn is None else (y, hn, cn)), saved


def _without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Disables autocast in `backward`, so that its products have the dtype of its tensors."""

    @functools.wraps(backward)
    def in_own_dtype(ctx: Any, *grads: Tensor | None) -> Any:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return backward(ctx, *grads)

    return in_own_dtype


class _Pass(torch.autograd.Function):
    """One layer in one direction, as `_forward` runs it."""

    @staticmethod
    def forward(ctx: Any, form: _Form, *given: Tensor | None) -> tuple[Tensor, ...]:
        results, saved = _forward(form, *given, saves=any(ctx.needs_input_grad))
        ctx.form = form
        ctx.save_for_backward(*given, results[0], saved)
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, dy: Tensor | None, *d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        form: _Form = ctx.form
        *given, y, saved = ctx.saved_tensors
        if are_for_torch((dy, *d_last)):
            return None, *_by_torch(form, (dy, *d_last), given, ctx.needs_input_grad[1:])
        x, h0, c0, w_ih, w_hh, *_ = given
        w_hh, h0, c0 = w_hh.contiguous(), _contiguous(h0), _contiguous(c0)
        _, wants_x, wants_h0, wants_c0, wants_w, wants_r, wants_b_w, wants_b_r = (
            ctx.needs_input_grad
        )
        steps, batch, hidden = y.shape
        dy = _contiguous(dy)
        dhn, dcn = (*map(_contiguous, d_last), None)[:2]
        da = y.new_empty(steps * batch, w_hh.shape[0])
        da_hidden = y.new_empty(steps * batch, hidden) if form.cell == "gru" else None
        dh0 = y.new_empty(batch, hidden) if wants_h0 else None
        dc0 = y.new_empty(batch, hidden) if wants_c0 else None
        own = _pass_of(form, w_hh, steps, batch)
        own.h0, own.c0 = _pointer(h0), _pointer(c0)
        arrays = saved, y, dy, dhn, dcn, da, da_hidden, dh0, dc0
        _run(own, _cuda.Gradients(*map(_pointer, arrays)), y)
        # The gradients at R h + b_r. They equal those at W x + b_w, except in a GRU's gate n, which
        # multiplies R h + b_r by r first.
        at_hidden = da if da_hidden is None else torch.cat((da[:, :-hidden], da_hidden), 1)
        return (
            None,
            (da @ w_ih).view_as(x) if wants_x else None,
            dh0,
            dc0,
            da.t() @ x.reshape(steps * batch, -1) if wants_w else None,
            at_hidden.t() @ _before(form, y, h0) if wants_r else None,
            da.sum(0) if wants_b_w else None,
            at_hidden.sum(0) if wants_b_r else None,
        )


def _by_torch(
    form: _Form,
    d_outputs: Sequence[Tensor | None],
    given: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients at `given`, by torch's operations, which are differentiable in turn."""
    x, _, _, w_ih, w_hh, b_ih, _ = given
    assert x is not None and w_ih is not None and w_hh is not None
    sizes = Sizes(w_ih.shape[1], w_hh.shape[1], 0)
    kind = Kind(form.cell, sizes, bias=b_ih is not None)
    return differentiable.gradients_of_one(
        kind, form.reverse, form.lengths, d_outputs, given, wanted
    )


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _before(form: _Form, y: Tensor, h0: Tensor | None) -> Tensor:
    """The h before each step, (T*B, H)."""
    first = torch.zeros_like(y[:1]) if h0 is None else h0.unsqueeze(0)
    if not form.reverse:
        return torch.cat((first, y[:-1])).flatten(0, 1)
    before = torch.cat((y[1:], first))
    if form.lengths is not None and h0 is not None:
        # A shorter row starts at its own last step, before which is h0 and not a row of y.
        last = (form.lengths.long() - 1).clamp_(min=0)
        before[last, torch.arange(len(last), device=last.device)] = h0
    return before.flatten(0, 1)
