"""How torch's tensors get into the compiled kernels, and out of them.

If torch has DLPack's functions for C, the kernels read and make tensors by them, in 0.05 and
0.3 us. With older versions of torch, tensors are turned into NumPy's arrays on the same memory, and
arrays into tensors, in 0.7 us each.
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

# The types that the kernels take. A subclass may give its memory a meaning of its own.
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

# From this number of elements on, allocating new memory takes time that shows.
_LARGE = 1 << 17
# From this number of elements on, torch's threads may share an operation.
_SHARED = 1 << 15


def is_as_it_lies(x: Any) -> bool:
    """Whether x is a tensor whose values are those in its memory."""
    return type(x) in TENSORS and not (x.is_neg() or x._is_zerotensor() or x.is_nested)


def has_memory(tensor: Tensor) -> bool:
    """Whether the storage holds all of the tensor. Sharding resizes storages of parameters to 0."""
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
    """The values of a tensor of any subclass, contiguous."""
    if type(tensor) not in TENSORS:
        tensor = tensor.as_subclass(Tensor)
    return tensor.resolve_neg().contiguous()


def widened(tensor: Tensor) -> Tensor:
    """A tensor in bfloat16 converted to float32, which has all its values; others unchanged."""
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def converted(
    tensor: Tensor, dtype: torch.dtype, empty_like: Callable[[Tensor, bool], Tensor | None]
) -> Tensor:
    """A tensor in float32 converted to bfloat16, or the reverse; on torch's graph if necessary.

    empty_like : the compiled module's function, which reuses the memory of large tensors from call
        to call. Torch allocates new memory each time; with that an LSTM 365 256 32 64 (T B I H)
        took 1.05 to 1.2 times as long.
    """
    if tensor.numel() < _LARGE or tensor.requires_grad or not _IS_DIRECT:
        return tensor.to(dtype)
    made = empty_like(tensor, dtype is torch.bfloat16)
    return tensor.to(dtype) if made is None else made.copy_(tensor)


def taking_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of the compiled module take and return tensors in place of arrays."""
    if _IS_DIRECT:
        return function

    def by_arrays(*args: Any) -> Any:
        try:
            arrays = [_with_arrays(value) for value in args]
        except (BufferError, RuntimeError, TypeError):  # a dtype, layout or device of torch's own
            return NotImplemented
        return _with_tensors(function(*arrays))

    return by_arrays


def reader_of_tensors(backend: NativeBackend) -> Callable[..., bool]:
    """The backend's `can_read`, for tensors."""
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
    """Makes a stack of the compiled module take and return tensors in place of arrays."""
    return stack if _IS_DIRECT else _Stack(stack)


class _Stack:
    __slots__ = ("backward", "forward", "infer", "step_backward", "steps_backward")
    infer_at = None  # this kind of stack has neither it nor `forward_at`

    def __init__(self, stack: Any) -> None:
        self.infer = taking_tensors(stack.infer)
        self.forward = taking_tensors(stack.forward)
        self.backward = taking_tensors(stack.backward)
        self.step_backward = taking_tensors(stack.step_backward)
        self.steps_backward = taking_tensors(stack.steps_backward)


def are_for_torch(gradients: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass with such gradients must run by torch's operations.

    It must with `create_graph`, with tangents, and where a gradient's values are not those in its
    memory: a tensor may stand for several, as with `is_grads_batched` or `torch.vmap`, for the
    negatives of its memory, or for what a subclass makes of it.
    """
    return _is_grad_enabled() or forward_ad._current_level >= 0 or any(map(_is_special, gradients))


def _is_special(tensor: Tensor | None) -> bool:
    return tensor is not None and (
        not is_as_it_lies(tensor) or _is_batched(tensor) or _is_wrapped(tensor)
    )


def state_of(states: Sequence[Tensor | None] | None) -> Any:
    """States, or their gradients, in the form that a stack takes."""
    return None if states is None else states[0] if len(states) == 1 else tuple(states)


def states_of(state: Any) -> States:
    """A stack's state as a tuple."""
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
    """The gradients from `stack.backward`, for arguments of any strides.

    If those at the states are not wanted, they are (None, None).
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
    """The gradients from `stack.step_backward`, for arguments of any strides.

    Returns None if torch must compute them, as `are_for_torch` tells.
    states, d_states : in the form that a stack takes.
    """
    if _is_grad_enabled() or forward_ad._current_level >= 0:
        return None
    threads = _get_num_threads()
    given = x, states, output, tape, d_output, d_states
    if _IS_DIRECT:  # the stack itself refuses special gradients
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
    """The gradients from `stack.steps_backward`, for arguments of any strides."""
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
    """A copy of the tensor through which gradients flow; see `copy_of`."""
    if not tensor.requires_grad:
        return copy_of(tensor)
    # Torch clones a tensor too small for several threads in 2 us; `_Copy.apply` takes 10.
    return tensor.clone() if tensor.numel() < _SHARED else _Copy.apply(tensor)


def copy_of(tensor: Tensor) -> Tensor:
    """A copy that torch does not make: its threads share a large one, then spin for milliseconds.

    On two cores the kernels would have only one meanwhile, and take 1.7 times as long.
    """
    made = _native_backend.copy_of(tensor) if _IS_DIRECT else None
    if made is not None:
        return made
    if tensor.dtype is torch.bfloat16:  # which NumPy does not have
        return copy_of(tensor.view(torch.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.from_dlpack(tensor).copy())


def array(tensor: Tensor) -> NDArray:
    """The tensor's memory as an array; a contiguous copy if the tensor is not contiguous.

    It avoids `Tensor.numpy`: after that torch refuses to resize the storage, which FSDP does.
    """
    return np.from_dlpack(tensor.detach().contiguous())


def _contiguous(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_contiguous, value))
    return None if value is None else value.contiguous()


def _with_arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.dtype is torch.bfloat16:  # weights, of which only the bytes matter
            value = value.view(torch.int16)
        return np.from_dlpack(value.detach())
    return type(value)(map(_with_arrays, value)) if isinstance(value, (tuple, list)) else value


def _with_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map(_with_tensors, value))
    return value
