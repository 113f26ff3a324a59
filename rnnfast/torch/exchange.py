"""Torch's tensors into the compiled kernels, and out of them.

Where torch has DLPack's functions for C, the kernels read and make tensors by them, in 0.05 and
0.3 us. With older versions tensors become NumPy's arrays on the same memory, and arrays tensors, in
0.7 us each.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from rnnfast import _native_backend
from rnnfast._native_backend import NativeBackend

States = tuple[Tensor, ...]  # (h,) or (h, c)
_NO_STATES: Any = (None, None)

# Subclasses mean something of their own.
TENSORS = (Tensor, torch.nn.Parameter)

# As functions, for `map`.
is_leaf = Tensor.is_leaf.__get__
is_given = partial(operator.is_not, None)
is_neg = Tensor.is_neg
requires_grad = Tensor.requires_grad.__get__
version = Tensor._version.__get__

_get_num_threads = torch.get_num_threads
_is_grad_enabled = torch.is_grad_enabled
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

# Whether the kernels take tensors as they are.
_IS_DIRECT = _native_backend.take_tensors(
    getattr(Tensor, "__dlpack_c_exchange_api__", None), *TENSORS, is_neg
)


if torch.backends.openmp.is_available() and hasattr(torch._C, "__file__"):
    _native_backend.use_openmp(str(torch._C.__file__))

# Elements from which on new memory shows.
_LARGE = 1 << 17
# From so many on torch's threads may share an operation on them.
_SHARED = 1 << 15


def is_as_it_lies(x: Any) -> bool:
    """Whether it is a tensor that stands for what its memory holds."""
    return type(x) in TENSORS and not (x.is_neg() or x._is_zerotensor() or x.is_nested)


def has_memory(tensor: Tensor) -> bool:
    """Whether all of it lies in its storage, which those who shard parameters resize to nothing."""
    end = tensor.numel()
    if not end:
        return True
    if not tensor.is_contiguous():
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        end = 1 + sum((size - 1) * stride for size, stride in steps)
    items = tensor.storage_offset() + end
    return tensor.untyped_storage().nbytes() >= items * tensor.element_size()


UNREADABLE = "expected tensors that lie in the CPU's memory as they are, got another kind"


def plain(tensor: Tensor) -> Tensor:
    """What a tensor of any subclass holds, contiguous."""
    if type(tensor) not in TENSORS:
        tensor = tensor.as_subclass(Tensor)
    return tensor.resolve_neg().contiguous()


def widened(tensor: Tensor) -> Tensor:
    """One in bfloat16 in float32, which holds its values; others as they are."""
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def converted(
    tensor: Tensor, dtype: torch.dtype, empty_like: Callable[[Tensor, bool], Tensor | None]
) -> Tensor:
    """One in float32 in bfloat16, or the other way round; on torch's graph where it needs to be.

    empty_like : of the compiled module, whose memory for large ones is kept from call to call.
        Torch's is new each time: with it an LSTM 365 256 32 64 took 1.05 to 1.2 times as long.
    """
    if tensor.numel() < _LARGE or tensor.requires_grad or not _IS_DIRECT:
        return tensor.to(dtype)
    made = empty_like(tensor, dtype is torch.bfloat16)
    return tensor.to(dtype) if made is None else made.copy_(tensor)


def taking_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the compiled module, with tensors in place of arrays."""
    if _IS_DIRECT:
        return function

    def by_arrays(*args: Any) -> Any:
        try:
            arrays = [_with_arrays(value) for value in args]
        except (BufferError, RuntimeError, TypeError):  # a dtype, layout or device that is torch's
            return NotImplemented
        return _with_tensors(function(*arrays))

    return by_arrays


def reader_of_tensors(backend: NativeBackend) -> Callable[..., bool]:
    """Its `can_read`, of tensors."""
    if _IS_DIRECT:
        can_read: Callable[..., bool] = backend.can_read
        return can_read
    place_of = taking_tensors(backend.place)

    def by_arrays(
        place: bytes, weights: tuple[Tensor, ...], x: Any, states: tuple[Any, ...] | None
    ) -> bool:
        can = all(map(is_as_it_lies, (x, *weights, *(states or ()))))
        return can and x.numel() > 0 and place_of(weights) == place

    return by_arrays


def stack_taking_tensors(stack: Any) -> Any:
    """A stack of the compiled module, with tensors in place of arrays."""
    return stack if _IS_DIRECT else _Stack(stack)


class _Stack:
    __slots__ = ("backward", "forward", "infer", "step_backward", "steps_backward")
    infer_at = None  # there is none, nor `forward_at`

    def __init__(self, stack: Any) -> None:
        self.infer = taking_tensors(stack.infer)
        self.forward = taking_tensors(stack.forward)
        self.backward = taking_tensors(stack.backward)
        self.step_backward = taking_tensors(stack.step_backward)
        self.steps_backward = taking_tensors(stack.steps_backward)


def are_for_torch(gradients: Sequence[Tensor | None]) -> bool:
    """Whether only torch's operations can take such gradients back.

    With `create_graph`, with tangents, or where one is not what lies in its memory: it may stand
    for several, as with `is_grads_batched` or `torch.vmap`, for its negative, or for what a
    subclass makes of it.
    """
    return _is_grad_enabled() or forward_ad._current_level >= 0 or any(map(_is_special, gradients))


def _is_special(tensor: Tensor | None) -> bool:
    return tensor is not None and (
        not is_as_it_lies(tensor) or _is_batched(tensor) or _is_wrapped(tensor)
    )


def state_of(states: Sequence[Tensor | None] | None) -> Any:
    """States, or their gradients, as a stack takes them."""
    return None if states is None else states[0] if len(states) == 1 else tuple(states)


def states_of(state: Any) -> States:
    """What a stack gives as its state."""
    return state if isinstance(state, tuple) else (state,)


def gradients(
    stack: Any,
    x: Tensor,
    states: Sequence[Tensor] | None,
    lengths: Tensor | None,
    output: Tensor | None,
    tape: Tensor,
    d_output: Tensor | None,
    d_states: Sequence[Tensor | None],
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, States, list[Tensor | None]]:
    """The gradients that `stack.backward` gives, whatever the strides of its arguments.

    Those at states that are not wanted are (None, None).
    """
    threads = _get_num_threads()
    state, d_state = state_of(states), state_of(d_states)
    result = stack.backward(x, state, lengths, output, tape, d_output, d_state, wanted, threads)
    if result is NotImplemented:
        given = map(_contiguous, (x, state, lengths, output, tape, d_output, d_state))
        result = stack.backward(*given, wanted, threads)
    if result is NotImplemented:
        raise RuntimeError(UNREADABLE)
    dx, initial, parameters = result
    return dx, _NO_STATES if initial is None else states_of(initial), parameters


def step_gradients(
    stack: Any,
    x: Tensor,
    states: Any,
    output: Tensor | None,
    tape: Tensor,
    d_output: Tensor | None,
    d_states: Any,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Any, Tensor | None] | None:
    """What `stack.step_backward` gives, whatever the strides; states as a stack takes them.

    None: the gradients are for torch, as `are_for_torch` says.
    """
    if _is_grad_enabled() or forward_ad._current_level >= 0:
        return None
    threads = _get_num_threads()
    given = x, states, output, tape, d_output, d_states
    if _IS_DIRECT:  # takes no special ones
        result = stack.step_backward(*given, wanted, threads)
        if result is not NotImplemented:
            return result
    if any(map(_is_special, (d_output, *states_of(d_states)))):
        return None
    result = stack.step_backward(*map(_contiguous, given), wanted, threads)
    if result is NotImplemented:
        raise RuntimeError(UNREADABLE)
    return result


def steps_gradients(
    stack: Any,
    steps: list[tuple[Tensor, Tensor | None, Tensor | None, Tensor]],
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """What `stack.steps_backward` gives, whatever the strides."""
    threads = _get_num_threads()
    result = stack.steps_backward(steps, wanted, threads)
    if result is NotImplemented:
        result = stack.steps_backward(list(map(_contiguous, steps)), wanted, threads)
    if result is NotImplemented:
        raise RuntimeError(UNREADABLE)
    return result


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return copy_of(tensor.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def copy_on_graph(tensor: Tensor) -> Tensor:
    """A copy through which gradients go; see `copy_of`."""
    if not tensor.requires_grad:
        return copy_of(tensor)
    # What torch's threads do not share takes it 2 us, and a function of Python's 10.
    return tensor.clone() if tensor.numel() < _SHARED else _Copy.apply(tensor)


def copy_of(tensor: Tensor) -> Tensor:
    """Not by torch, whose threads would share a large one, and then spin for milliseconds.

    On two cores the kernels would have one of them meanwhile, and take 1.7 times as long.
    """
    made = _native_backend.copy_of(tensor) if _IS_DIRECT else None
    if made is not None:
        return made
    if tensor.dtype is torch.bfloat16:  # which NumPy does not have
        return copy_of(tensor.view(torch.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.from_dlpack(tensor).copy())


def array(tensor: Tensor) -> NDArray:
    """The memory of a tensor as an array, contiguous; a copy where it is not.

    Not by its `numpy`, after which torch would refuse to resize its storage, as FSDP does.
    """
    return np.from_dlpack(tensor.detach().contiguous())


def _contiguous(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_contiguous, value))
    return None if value is None else value.contiguous()


def _with_arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.dtype is torch.bfloat16:  # weights, as bytes: of what is computed with it is none
            value = value.view(torch.int16)
        return np.from_dlpack(value.detach())
    return type(value)(map(_with_arrays, value)) if isinstance(value, (tuple, list)) else value


def _with_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map(_with_tensors, value))
    return value
