"""The operators `rnnfast::forward`, `backward` and `copy`, for torch's compilers and transforms.

They run a stack of layers over (T, B, I), with one list of all parameters in torch's order. The
tape holds what `backward` needs besides its other arguments. It is empty if `training` is false, or
if y is all that `backward` needs. Results that the cell does not have, or that are not wanted, have
no elements.

format_name : the format of the operands of products, for tensors in float32. Its default keeps
    programs loadable that were exported before the option existed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnfast.torch import differentiable, operator_runs
from rnnfast.torch.exchange import copy_of, plain
from rnnfast.torch.kinds import COMPUTED, Kind
from rnnfast.torch.operator_checks import check_backward, checked_kind

_OPTIONS = "str cell, int directions, bool bias"
_STATES = "Tensor? h0, Tensor? c0, Tensor[] weights"
_FORMAT = "str? format_name=None"


def _tape_shape(kind: Kind, x: Tensor) -> tuple[Any]:
    """The shape of the tape. If sizes of the layer are symbols, this fixes them as numbers."""
    sizes = type(kind.sizes)(*map(int, kind.sizes))
    return operator_runs.tape_shape(kind._replace(sizes=sizes), x)


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
    """Returns the output (T, B, D*W), h (L*D, B, W), c (L*D, B, H), and the tape."""
    form = cell, directions, bias, format_name
    return operator_runs.forward(x, h0, c0, weights, form, training)


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
    """Returns the gradients at x, h0, c0 and each parameter; `wanted` has a flag for each."""
    form = cell, directions, bias, format_name
    return operator_runs.backward(dy, dh, dc, x, h0, c0, weights, y, tape, form, wanted)


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
    check_backward(kind, dy, dh, dc, x, y, tape, _tape_shape(kind, x), len(weights), wanted)

    def like(tensor: Tensor | None, want: bool) -> Tensor:
        return x.new_empty(0) if tensor is None or not want else x.new_empty(tensor.shape)

    of_weights = zip(weights, wanted[3:], strict=True)
    dx, dh0, dc0 = map(like, (x, h0, c0), wanted[:3])
    return dx, dh0, dc0, [like(weight, want) for weight, want in of_weights]


@torch.library.custom_op(
    "rnnfast::copy", mutates_args=(), device_types="cpu", schema="(Tensor y) -> Tensor"
)
def copy(y: Tensor) -> Tensor:
    """Returns a copy of an output of `forward`, whose backward pass reads the original."""
    return copy_of(plain(y).detach())


@torch.library.register_fake("rnnfast::copy")
def _copy_fake(y: Tensor) -> Tensor:
    return y.new_empty(y.shape)


torch.library.register_autograd("rnnfast::copy", lambda ctx, gradient: gradient)


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
    # Torch leaves out options that have their defaults, and expects no gradients for them.
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
    """A tensor at which gradients can be taken, on the same graph if `tensor` is on one."""
    if tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


torch.library.register_autograd(
    "rnnfast::backward", _backward_of_backward, setup_context=_setup_backward
)
