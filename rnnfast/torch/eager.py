"""Calls of modules outside of compilers and transforms, run by the kernels or not at all.

A function that returns None leaves the call to torch's own implementation, which either covers it
or raises torch's own error. A small layer's call takes about as long in this file as in its kernel,
so each call makes every check once, and in the way that takes the least time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rnnfast.torch import steps
from rnnfast.torch.autograd import Call, apart, infer, record
from rnnfast.torch.cache import PackCache
from rnnfast.torch.exchange import (
    TENSORS,
    States,
    converted,
    is_as_it_lies,
    is_leaf,
    requires_grad,
)
from rnnfast.torch.kinds import DTYPES, FORMATS
from rnnfast.torch.packs import Packs, Parameters

if TYPE_CHECKING:
    from rnnfast.torch.modules import Cell, Layer

_DTYPES = frozenset(DTYPES)

_is_grad_enabled = torch.is_grad_enabled
_tracing_state = torch._C._get_tracing_state


def _is_plain(x: Any) -> bool:
    """Whether x is a tensor that the kernels take, apart from its shape."""
    return is_as_it_lies(x) and x.dtype in _DTYPES and _is_strided(x)


def _is_strided(x: Tensor) -> bool:
    """Whether x lies in the CPU's memory, with strides."""
    return x.is_cpu and x.layout is torch.strided


def _ready(
    module: Layer | Cell, x: Any, states: Sequence[Tensor] | None
) -> tuple[Parameters, tuple[Tensor, ...]] | None:
    """The module's weights, as `Parameters` for the kernels and as torch's tensors.

    None : torch must see the call, the kernels do not take the weights, x is empty, or the values
        of x or a state are not those in its memory. The pass itself refuses all other arguments
        that the kernels do not take.
    """
    if (
        type(x) not in TENSORS  # asked before parametrizations run: they may count calls
        or _tracing_state() is not None
        or forward_ad._current_level >= 0
    ):
        return None
    cache = PackCache.of(module)
    weights = module._weights(cache)
    kind = module._kind(cache)
    parameters = cache.known(kind, weights, x, states)
    if parameters is None:
        if not all(map(is_as_it_lies, (x, *(states or ())))) or not x.numel():
            return None
        parameters = cache.get(kind, weights)
    return None if parameters is None else (parameters, weights)


def again(module: Layer | Cell, x: Any, hx: Any) -> Any:
    """(output, state) of a call that repeats an earlier one; None: it may be another kind of call.

    The earlier call was one without gradients, or a step on the same graph. The compiled module
    checks all that `layer` and `cell` would check, such as whether the weights have moved.
    """
    if _tracing_state() is not None or forward_ad._current_level >= 0:
        return None
    own = module.__dict__
    cache = own.get("_rnnfast")
    is_step = _is_grad_enabled()
    if cache is None or not (cache.shared if is_step else cache.remembers()):
        return None
    try:
        kept = cache.kept(module._kind(cache))
        if kept is None or (kept.kind.layers > 1 and module.training and module.dropout):
            return None
        weights = cache.select(own["_parameters"])
    except KeyError:  # the mode is wrong, which torch reports, or weights are made for each call
        return None
    batch_first = own.get("batch_first")
    if is_step:
        return steps.again(cache, kept, bool(batch_first), weights, x, hx)
    return kept.again(batch_first, weights, x, hx)


def layer(
    module: Layer,
    x: Any,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor] | None,
    format_name: str | None = None,
) -> tuple[Tensor, States] | None:
    """The output (for packed input: its data) and the last states of a layer.

    x, batch_sizes : the input and None; or the data and the batch sizes of a PackedSequence.
    states : (h,) or (h, c), in the order of the input's sequences.
    format_name : the format of the operands of products in a float32 layer; None: float32.
    """
    ready = _ready(module, x, states)
    if ready is None:
        return None
    parameters, weights = ready
    if parameters.format_name is None:
        return _layer(module, parameters, weights, batch_sizes, format_name, x, states)
    wide = _widened(parameters, x, states)
    if wide is None:
        return None
    own = module, parameters, weights, batch_sizes, parameters.format_name
    result = _layer(*own, *wide)
    if result is None:
        return None
    output, last = result
    rounded = converted(output, x.dtype, parameters.backend.empty_like)
    return rounded, tuple(s.to(x.dtype) for s in last)


def _layer(
    module: Layer,
    parameters: Parameters,
    weights: tuple[Tensor, ...],
    batch_sizes: Tensor | None,
    format_name: str | None,
    x: Tensor,
    states: Sequence[Tensor] | None,
) -> tuple[Tensor, States] | None:
    if parameters.kind.layers > 1 and module.training and module.dropout:
        packs = parameters.packed(weights, format_name)
        return _with_dropout(module, parameters, packs, x, batch_sizes, states, weights)
    batch_first = module.batch_first and batch_sizes is None
    rows = math.inf if batch_sizes is not None else _rows_of_one_step(x, batch_first)
    holder = None if rows == math.inf else PackCache.of(module)
    form = holder, parameters, weights, batch_sizes, batch_first
    if format_name is None:
        borrowed = parameters.borrowed(rows, weights)
        if borrowed is not None:
            result = _run(*form, borrowed, x, states)
            if result is not None:
                return result
    packs = parameters.packed(weights, format_name)
    return _run(*form, packs, x, states) or _again(_run, *form, packs, x, states)


def _run(
    holder: PackCache | None,
    parameters: Parameters,
    weights: tuple[Tensor, ...],
    batch_sizes: Tensor | None,
    batch_first: bool,
    packs: Packs,
    x: Tensor,
    states: Sequence[Tensor] | None,
) -> tuple[Tensor, States] | None:
    """Runs the pass, on torch's graph if it needs gradients.

    holder : the module's cache, for a call of one step, whose weights' gradients may be computed
        together with those of other steps; else None.
    """
    if not _is_grad_enabled() or not _need_gradients(x, states, weights):
        if batch_sizes is None:
            parameters.remember(packs, batch_first)
        return infer(packs.stack(batch_first, batch_sizes is not None), x, states, batch_sizes)
    call = Call(parameters, packs, batch_sizes, batch_first)
    if (
        holder is None
        or not steps.goes_on(packs.kind, states)
        or weights[0].is_inference()
        or not all(map(is_leaf, weights))  # weights made for each step share no gradient
    ):
        return record(call, weights, x, states)
    outputs = steps.record(holder, call, weights, x, states)
    return None if outputs is None else (outputs[0], outputs[1:])


def _widened(
    parameters: Parameters, x: Tensor, states: Sequence[Tensor] | None
) -> tuple[Tensor, States | None] | None:
    """x and the states in float32, for weights in a dtype of `FORMATS`.

    None : x or a state has another dtype than the weights. Torch's graph includes the conversion.
    """
    given, format_name = (x, *(states or ())), parameters.format_name
    if not all(FORMATS.get(t.dtype) == format_name and _is_strided(t) for t in given):
        return None
    wide = converted(x, torch.float32, parameters.backend.empty_like)
    return wide, None if states is None else tuple(s.float() for s in states)


def _rows_of_one_step(x: Tensor, batch_first: bool) -> float:
    """B for an x of one step; infinity if x has several steps."""
    shape = x.shape
    if len(shape) != 3:
        return 1 if shape[:1] == (1,) else math.inf
    return shape[1 - batch_first] if shape[batch_first] == 1 else math.inf


def cell(
    module: Cell, x: Any, states: Sequence[Tensor] | None, format_name: str | None = None
) -> States | None:
    """The states (h,) or (h, c) of a cell after its step; `format_name` : as for `layer`."""
    ready = _ready(module, x, states)
    if ready is None:
        return None
    parameters, weights = ready
    if parameters.format_name is None:
        return _cell(module, parameters, weights, format_name, x, states)
    wide = _widened(parameters, x, states)
    if wide is None:
        return None
    last = _cell(module, parameters, weights, parameters.format_name, *wide)
    return None if last is None else tuple(s.to(x.dtype) for s in last)


def _cell(
    module: Cell,
    parameters: Parameters,
    weights: tuple[Tensor, ...],
    format_name: str | None,
    x: Tensor,
    states: Sequence[Tensor] | None,
) -> States | None:
    form = module, parameters, weights
    if format_name is None:
        shape = x.shape
        borrowed = parameters.borrowed(shape[0] if len(shape) == 2 else 1, weights)
        if borrowed is not None:
            last = _step(*form, borrowed, x, states)
            if last is not None:
                return last
    packs = parameters.packed(weights, format_name)
    return _step(*form, packs, x, states) or _again(_step, *form, packs, x, states)


def _step(
    module: Cell,
    parameters: Parameters,
    weights: tuple[Tensor, ...],
    packs: Packs,
    x: Tensor,
    states: Sequence[Tensor] | None,
) -> States | None:
    if not _is_grad_enabled() or not _need_gradients(x, states, weights):
        parameters.remember(packs, None)
        result = infer(packs.stack(), x, states)
        return None if result is None else result[1]
    if weights[0].is_inference():  # torch refuses to save such tensors for backward
        return None
    return steps.record(PackCache.of(module), Call(parameters, packs), weights, x, states)


def _again(function: Callable[..., Any], *args: Any) -> Any:
    """Calls the function with contiguous copies of x and the states, its last arguments.

    None : no contiguous copy makes x or a state a tensor that the kernels take.
    """
    *own, x, states = args
    if not _is_plain(x) or not all(map(_is_plain, states or ())):
        return None
    copies = None if states is None else tuple(s.contiguous() for s in states)
    return function(*own, x.contiguous(), copies)


def _need_gradients(x: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor]) -> bool:
    """Whether any of the tensors requires a gradient."""
    return (
        weights[0].requires_grad
        or x.requires_grad
        or any(map(requires_grad, weights))
        or (states is not None and any(map(requires_grad, states)))
    )


def _with_dropout(
    module: Layer,
    parameters: Parameters,
    packs: Packs,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor] | None,
    weights: tuple[Tensor, ...],
) -> tuple[Tensor, States] | None:
    """Runs layer by layer, with torch's dropout in between, so that a seed gives torch's masks."""
    kind = parameters.kind
    if not _is_plain(x) or not all(map(_is_plain, states or ())) or x.dim() not in (2, 3):
        return None
    unbatched = x.dim() == 2 and batch_sizes is None
    swapped = module.batch_first and batch_sizes is None and not unbatched
    if unbatched:
        x = x.unsqueeze(1)
        states = None if states is None else [s.unsqueeze(1) for s in states]
    elif swapped:
        if _is_grad_enabled() and parameters.format_name is None:
            x = apart(x)
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
        of_layer = weights[index * per_layer : (index + 1) * per_layer]
        form = None, parameters, of_layer, batch_sizes, False
        result = _run(*form, packs.layer(index), x, own)
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
