"""The operators `rnnfast::forward`, `backward` and `copy`, for torch's compilers and transforms.

They run a stack of layers over (T, B, I), with one list of all parameters in torch's order. The
tape is what backward needs besides; of no size where `training` is false, or y is all. Tensors
that a cell does not have, or that are not wanted, have no elements.

format_name : of the operands of products, where tensors are in float32; its default keeps programs
    loadable that were exported before there was one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rnnfast._native_backend import NativeBackend
from rnnfast.torch import differentiable
from rnnfast.torch.content import ContentCache
from rnnfast.torch.exchange import (
    UNREADABLE,
    copy_of,
    gradients,
    plain,
    state_of,
    states_of,
    widened,
)
from rnnfast.torch.kinds import COMPUTED, DTYPES, Kind, native
from rnnfast.torch.operator_checks import check, checked_kind
from rnnfast.torch.packs import Packs

_OPTIONS = "str cell, int directions, bool bias"
_STATES = "Tensor? h0, Tensor? c0, Tensor[] weights"
_FORMAT = "str? format_name=None"

_packs = ContentCache()


def _backend() -> NativeBackend:
    backend = native()
    if backend is None:
        raise RuntimeError("rnnfast: expected the backend native, got another")
    return backend


def _packed(kind: Kind, weights: Sequence[Tensor], format_name: str | None) -> Packs:
    return _packs.get(_backend(), kind, [plain(weight) for weight in weights], format_name)


def _present(*states: Tensor | None) -> list[Tensor] | None:
    given = [_computed(state) for state in states if state is not None]
    return given or None


def _computed(tensor: Tensor) -> Tensor:
    """What a stack takes for a tensor."""
    return widened(plain(tensor))


# Tapes have the size that they have with the widest vectors of any ISA, 64 bytes: compilers keep it
# in files, which may be loaded where vectors are shorter.
_LANES = {torch.float32: 16, torch.float64: 8}


def _tape_row(kind: Kind, dtype: torch.dtype, lanes: int) -> int:
    """`dtype` : that the tape has."""
    width, hidden, projection = (int(size) for size in kind.sizes)
    hidden, projection = (-(-size // lanes) * lanes for size in (hidden, projection))
    sizes = width, hidden, projection
    return _backend().tape_row(kind.cell, DTYPES[dtype], *sizes, kind.layers, kind.directions)


def _tape_shape(kind: Kind, x: Tensor) -> tuple[Any]:
    dtype = COMPUTED[x.dtype]
    return (x.shape[0] * x.shape[1] * _tape_row(kind, dtype, _LANES[dtype]),)


@torch.library.custom_op(
    "rnnfast::forward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor x, {_STATES}, {_OPTIONS}, bool training, {_FORMAT}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def forward(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    directions: int,
    bias: bool,
    training: bool,
    format_name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (T, B, D*W), h (L*D, B, W), c (L*D, B, H), and the tape."""
    kind = checked_kind(x, h0, c0, weights, cell, directions, bias, format_name)
    stack, threads = _packed(kind, weights, format_name).stack(), torch.get_num_threads()
    dtype, given, states = x.dtype, _computed(x), state_of(_present(h0, c0))
    result: Any
    if training:
        result = stack.forward(given, states, None, threads)
    else:
        result = stack.infer(given, states, None, None, None, threads)
    if result is NotImplemented:
        raise RuntimeError(UNREADABLE)
    y, last, *kept = result
    tape = given.new_empty(0)
    if training:
        tape, missing = kept[0], _tape_shape(kind, x)[0] - len(kept[0])
        tape = pad(tape, (0, missing)) if missing else tape  # which would copy for nothing, too
    h, *c = (state.to(dtype) for state in states_of(last))
    return y.to(dtype), h, c[0] if c else given.new_empty(0, dtype=dtype), tape


@torch.library.register_fake("rnnfast::forward")
def _forward_fake(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    directions: int,
    bias: bool,
    training: bool,
    format_name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind = checked_kind(x, h0, c0, weights, cell, directions, bias, format_name)
    steps, batch = x.shape[:2]
    rows, sizes = kind.layers * directions, kind.sizes
    return (
        x.new_empty(steps, batch, kind.width),
        x.new_empty(rows, batch, sizes.output),
        x.new_empty(rows, batch, sizes.hidden) if kind.has_c else x.new_empty(0),
        x.new_empty(_tape_shape(kind, x) if training else (0,), dtype=COMPUTED[x.dtype]),
    )


@torch.library.custom_op(
    "rnnfast::backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor? dy, Tensor? dh, Tensor? dc, Tensor x, {_STATES}, Tensor y, Tensor tape, "
    f"{_OPTIONS}, bool[] wanted, {_FORMAT}) -> (Tensor, Tensor, Tensor, Tensor[])",
)
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
    cell: str,
    directions: int,
    bias: bool,
    wanted: Sequence[bool],
    format_name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The gradients at x, h0, c0 and each parameter; `wanted` tells which, in this order."""
    kind = checked_kind(x, h0, c0, weights, cell, directions, bias, format_name)
    _check_backward(kind, dy, dh, dc, x, y, tape, len(weights), wanted)

    dx, initial, parameters = gradients(
        _packed(kind, weights, format_name).stack(),
        _computed(x),
        _present(h0, c0),
        None,
        _computed(y),
        plain(tape)[: x.shape[0] * x.shape[1] * _tape_row(kind, tape.dtype, 1)],
        None if dy is None else _computed(dy),
        [None if d is None else _computed(d) for d in ((dh, dc) if kind.has_c else (dh,))],
        (bool(wanted[0]), bool(wanted[1] or wanted[2]), *map(bool, wanted[3:])),
    )
    dh0, *dc0 = initial
    none = plain(x).new_empty

    def rounded(gradient: Tensor | None) -> Tensor:
        return none(0) if gradient is None else gradient.to(x.dtype)

    return (
        rounded(dx),
        rounded(dh0 if wanted[1] else None),
        rounded(dc0[0] if wanted[2] else None),
        list(map(rounded, parameters)),
    )


@torch.library.register_fake("rnnfast::backward")
def _backward_fake(
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    y: Tensor,
    tape: Tensor,
    cell: str,
    directions: int,
    bias: bool,
    wanted: Sequence[bool],
    format_name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    kind = checked_kind(x, h0, c0, weights, cell, directions, bias, format_name)
    _check_backward(kind, dy, dh, dc, x, y, tape, len(weights), wanted)

    def like(tensor: Tensor | None, want: bool) -> Tensor:
        return x.new_empty(0) if tensor is None or not want else x.new_empty(tensor.shape)

    of_weights = zip(weights, wanted[3:], strict=True)
    dx, dh0, dc0 = map(like, (x, h0, c0), wanted[:3])
    return dx, dh0, dc0, [like(weight, want) for weight, want in of_weights]


@torch.library.custom_op(
    "rnnfast::copy", mutates_args=(), device_types="cpu", schema="(Tensor y) -> Tensor"
)
def copy(y: Tensor) -> Tensor:
    """Of an output of `forward`, which keeps its own for its backward pass."""
    return copy_of(plain(y).detach())


@torch.library.register_fake("rnnfast::copy")
def _copy_fake(y: Tensor) -> Tensor:
    return y.new_empty(y.shape)


torch.library.register_autograd("rnnfast::copy", lambda ctx, gradient: gradient)


def _check_backward(
    kind: Kind,
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    y: Tensor,
    tape: Tensor,
    weights: int,
    wanted: Sequence[bool],
) -> None:
    steps, batch = x.shape[:2]
    rows, sizes = kind.layers * kind.directions, kind.sizes
    check("y", y, x, (steps, batch, kind.width))
    check("tape", tape, x, _tape_shape(kind, x), COMPUTED[x.dtype])
    check("dy", dy, x, (steps, batch, kind.width))
    check("dh", dh, x, (rows, batch, sizes.output))
    if dc is not None and not kind.has_c:
        raise ValueError(f"dc: expected None for {kind.cell}, got a tensor")
    check("dc", dc, x, (rows, batch, sizes.hidden))
    if len(wanted) != 3 + weights:
        raise ValueError(f"wanted: expected {3 + weights} entries, got {len(wanted)}")


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h0, c0, weights, *ctx.options = inputs
    ctx.save_for_backward(x, h0, c0, output[0], output[3], *weights)
    ctx.set_materialize_grads(False)


def _backward_of_forward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    cell, directions, bias, training, *format_name = ctx.options
    if not training:
        raise RuntimeError("rnnfast::forward: expected training=True of a pass with gradients")
    x, h0, c0, y, tape, *weights = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = [*needs[:3], *needs[3]]
    dy, dh, dc = (None if g is None or g.numel() == 0 else g for g in gradients[:3])
    own = cell, directions, bias, wanted, *format_name
    dx, dh0, dc0, found = torch.ops.rnnfast.backward(dy, dh, dc, x, h0, c0, weights, y, tape, *own)
    of_inputs = [g if want else None for g, want in zip((dx, dh0, dc0), wanted[:3], strict=True)]
    of_weights = [g if want else None for g, want in zip(found, wanted[3:], strict=True)]
    # Torch, which leaves out an option that is the default, wants no gradient for it.
    return (*of_inputs, of_weights, *[None] * (len(needs) - 4))


torch.library.register_autograd(
    "rnnfast::forward", _backward_of_forward, setup_context=_setup_forward
)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    dy, dh, dc, x, h0, c0, weights, _, _, *ctx.options = inputs
    ctx.save_for_backward(dy, dh, dc, x, h0, c0, *weights)
    ctx.set_materialize_grads(False)


def _backward_of_backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    given = ctx.saved_tensors
    cell, directions, bias, wanted = ctx.options[:4]
    kind = checked_kind(given[3], given[4], given[5], given[6:], cell, directions, bias)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [None if t is None else _followed(t) for t in given]
        d_states = own[1:3] if kind.has_c else own[1:2]
        found = differentiable.gradients(
            kind, None, False, own[0], d_states, own[3], own[4], own[5], own[6:], wanted
        )
        pairs = [
            (out, d)
            for out, d in zip(found, [*gradients[:3], *(gradients[3] or ())], strict=False)
            if out is not None and d is not None
        ]
        at = [t for t in own if t is not None]
        second = iter(
            torch.autograd.grad(
                [out for out, _ in pairs],
                at,
                [d for _, d in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    all_found = [None if t is None else next(second) for t in own]
    return (*all_found[:6], all_found[6:], *[None] * (len(ctx.needs_input_grad) - 7))


def _followed(tensor: Tensor) -> Tensor:
    """What gradients can be taken at, on the graph of the tensor if it is on one."""
    if tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


torch.library.register_autograd(
    "rnnfast::backward", _backward_of_backward, setup_context=_setup_backward
)
