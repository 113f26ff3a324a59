"""The registered operators under `torch.func`, whose transforms need rules of their own.

`vmap` over x and the states alone runs one pass over a larger batch. `vmap` over weights, and
gradients of weights for each sample, run sample by sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rnnfast.torch import differentiable
from rnnfast.torch.operator_checks import checked_kind

_Type = torch._C._functorch.TransformType
Options = tuple[str, int, bool, str | None]  # cell, directions, bias, format_name
_Dims = Sequence[Any]
_Tensors = tuple[Any, ...]  # of Tensor or None


def _in_force() -> set[Any]:
    """The kinds of the transforms that are active."""
    return {level.key() for level in torch._C._functorch.get_interpreter_stack() or ()}


def has_forward_mode() -> bool:
    """Whether forward-mode differentiation is active, which the operators do not support."""
    return forward_ad._current_level >= 0 or _Type.Jvp in _in_force()


def need_rules() -> bool:
    """Whether an active transform needs the rules here; for others the operators suffice."""
    return not _in_force().isdisjoint({_Type.Grad, _Type.Vmap})


def forward(
    options: Options,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of the operator `rnnfast::forward`, without the tape."""
    y, h, c, _ = _Forward.apply(options, x, h0, c0, *weights)
    return y, h, c


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        options: Options, x: Tensor, h0: Tensor | None, c0: Tensor | None, *weights: Tensor
    ) -> _Tensors:
        *layer, format_name = options
        return torch.ops.rnnfast.forward(x, h0, c0, weights, *layer, True, format_name)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options, x, h0, c0, *weights = inputs
        y, _, _, tape = output
        ctx.save_for_backward(x, h0, c0, y, tape, *weights)
        ctx.mark_non_differentiable(tape)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> _Tensors:
        wanted = ctx.needs_input_grad[1:]
        dy, dh, dc = gradients[:3]
        dc = None if ctx.options[0] != "lstm" else dc
        found = _Backward.apply(ctx.options, wanted, dy, dh, dc, *ctx.saved_tensors)
        return None, *(d if want else None for d, want in zip(found, wanted, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: _Dims, options: Options, *tensors: Tensor | None) -> Any:
        _, *dims = in_dims
        if any(dim is not None for dim in dims[3:]):
            return _one_by_one(info, dims, tensors, lambda *own: _Forward.apply(options, *own))
        batch = info.batch_size
        own = [_folded(t, dim, batch) for t, dim in zip(tensors[:3], dims[:3], strict=True)]
        y, h, c, tape = _Forward.apply(options, *own, *tensors[3:])
        # The tape stays that of the one large pass. A batched y with a tape that is not batched is
        # how `_Backward.vmap` recognises such a pass.
        if c.numel() == 0:
            return (_unfolded(y, batch), _unfolded(h, batch), c, tape), (1, 1, None, None)
        return (*(_unfolded(t, batch) for t in (y, h, c)), tape), (1, 1, 1, None)


class _Backward(torch.autograd.Function):
    """The gradients at x, h0, c0 and each weight; `wanted` has a flag for each."""

    @staticmethod
    def forward(
        options: Options,
        wanted: tuple[bool, ...],
        dy: Tensor | None,
        dh: Tensor | None,
        dc: Tensor | None,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        y: Tensor,
        tape: Tensor,
        *weights: Tensor,
    ) -> _Tensors:
        *layer, format_name = options
        dx, dh0, dc0, found = torch.ops.rnnfast.backward(
            dy, dh, dc, x, h0, c0, weights, y, tape, *layer, list(wanted), format_name
        )
        return dx, dh0, dc0, *found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options, ctx.wanted, dy, dh, dc, x, h0, c0, _, _, *weights = inputs
        ctx.save_for_backward(dy, dh, dc, x, h0, c0, *weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> _Tensors:
        given, wanted = ctx.saved_tensors, ctx.wanted
        kind = checked_kind(given[3], given[4], given[5], given[6:], *ctx.options)
        present = [t is not None for t in given]

        def first(*own: Tensor) -> _Tensors:
            """The gradients, by differentiable operations."""
            values = iter(own)
            dy, dh, dc, *at = [next(values) if there else None for there in present]
            inputs = [t for t in at if t is not None]

            def run(*through: Tensor) -> _Tensors:
                again = iter(through)
                x, h0, c0, *weights = [None if t is None else next(again) for t in at]
                return differentiable.forward(kind, x, h0, c0, weights)

            outputs, pullback = torch.func.vjp(run, *inputs)
            d_outputs = (dy, dh, dc)[: len(outputs)]
            zeros = (
                torch.zeros_like(out) if d is None else d
                for out, d in zip(outputs, d_outputs, strict=True)
            )
            found = iter(pullback(tuple(zeros)))
            at_all = [None if t is None else next(found) for t in at]
            return tuple(d for d, want in zip(at_all, wanted, strict=True) if want)

        through = [t for t in given if t is not None]
        _, pullback = torch.func.vjp(first, *through)
        found = iter(pullback(tuple(g for g, want in zip(gradients, wanted, strict=True) if want)))
        at = [next(found) if there else None for there in present]
        return None, None, *at[:6], None, None, *at[6:]

    @staticmethod
    def vmap(
        info: Any, in_dims: _Dims, options: Options, wanted: tuple[bool, ...], *tensors: Any
    ) -> Any:
        _, _, *dims = in_dims
        batch = info.batch_size
        folded = dims[6] is not None and dims[7] is None  # y and the tape, see `_Forward.vmap`
        if not folded or any(wanted[3:]):
            return _one_by_one(
                info, dims, tensors, lambda *own: _again(options, wanted, folded, own)
            )
        own = [_folded(t, dim, batch) for t, dim in zip(tensors[:7], dims[:7], strict=True)]
        found = _Backward.apply(options, wanted, *own, *tensors[7:])
        at = [_unfolded(d, batch) if want else d for d, want in zip(found, wanted, strict=True)]
        return tuple(at), tuple(1 if want else None for want in wanted)


def _again(options: Options, wanted: tuple[bool, ...], folded: bool, given: _Tensors) -> _Tensors:
    """The gradients for one sample; if the tape is of all samples, a new pass makes its own."""
    dy, dh, dc, x, h0, c0, y, tape, *weights = given
    if folded:
        y, _, _, tape = _Forward.apply(options, x, h0, c0, *weights)
    return _Backward.apply(options, wanted, dy, dh, dc, x, h0, c0, y, tape, *weights)


def _folded(tensor: Tensor | None, dim: int | None, batch: int) -> Tensor | None:
    """Folds the mapped axis `dim` of (T, B, ·) or (L*D, B, ·) into B: (·, batch*B, ·)."""
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(1).expand(-1, batch, *tensor.shape[1:])
    else:
        tensor = tensor.movedim(dim, 1)
    return tensor.flatten(1, 2)


def _unfolded(tensor: Tensor, batch: int) -> Tensor:
    return tensor.unflatten(1, (batch, tensor.shape[1] // batch))


def _one_by_one(info: Any, dims: _Dims, tensors: Sequence[Any], run: Any) -> Any:
    results = []
    for index in range(info.batch_size):
        pairs = zip(tensors, dims, strict=True)
        results.append(run(*(t if dim is None else t.select(dim, index) for t, dim in pairs)))
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
