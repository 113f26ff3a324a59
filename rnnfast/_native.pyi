"""The compiled module. `rnnfast/_backend.py` describes the arrays; the binding checks them.

Letters: T steps, B batch, L layers, D directions, N rows: the steps of all sequences together.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from numpy.typing import NDArray

Array = Any  # a NumPy array; or, after `take_tensors`, a tensor
State = Any  # h, or a pair (h, c)
Tensors = tuple[Array, ...]

# A capsule with the table of C functions in csrc/api/functions.h, for `rnnfast.stream`.
c_functions: Any

class Packed:
    """One layer's weights: packed in panels for the ISA in use, or borrowed in place."""

class Saved:
    """What a forward pass keeps for its backward pass."""

def pack(
    cell: str,
    weight_ih: NDArray,
    weight_hh: NDArray,
    bias_ih: NDArray | None,
    bias_hh: NDArray | None,
    weight_hr: NDArray | None,
    format: str | None = ...,
    /,
) -> Packed:
    """A copy in panels; `format` : a name in core/formats.inc, for float32 weights only."""

def repack(packs: list[Packed], weights: tuple[Array, ...], /) -> list[Packed] | None:
    """New packs like `packs`, of other `weights`: all parameters of `packs`, in the same order.

    New packs of borrowed weights borrow, too. Returns None if the number of weights differs, or if
    one is not contiguous and aligned or has another shape or dtype than before.
    """

def borrow(
    cell: str,
    weight_ih: NDArray,
    weight_hh: NDArray,
    bias_ih: NDArray | None,
    bias_hh: NDArray | None,
    weight_hr: NDArray | None,
    /,
) -> Packed:
    """Keeps the arrays themselves; each pass reads them in place, with the same bits as `pack`.

    A stack of borrowed packs runs passes of one step and few rows (`few_rows`), without lengths
    and resets, else it returns NotImplemented. A backward pass reads the arrays as they then are.
    `step_backward` of one layer, for the gates alone, reads none and takes any number of rows.
    """

def forward(
    packed: Packed,
    x: NDArray,
    h0: NDArray | None,
    c0: NDArray | None,
    lengths: NDArray | None,
    reset: NDArray | None,
    reverse: bool,
    y: NDArray,
    hn: NDArray,
    cn: NDArray | None,
    training: bool,
    /,
) -> Saved | None: ...
def backward(
    packed: Packed,
    saved: Saved,
    x: NDArray,
    h0: NDArray | None,
    c0: NDArray | None,
    lengths: NDArray | None,
    reset: NDArray | None,
    reverse: bool,
    y: NDArray,
    dy: NDArray | None,
    dhn: NDArray | None,
    dcn: NDArray | None,
    dx: NDArray | None,
    dh0: NDArray,
    dc0: NDArray | None,
    weight_ih: NDArray,
    weight_hh: NDArray,
    bias_ih: NDArray | None,
    bias_hh: NDArray | None,
    weight_hr: NDArray | None,
    /,
) -> None: ...

class Stack:
    """The packed weights of a layer or cell, and whole passes over them.

    The arguments of a pass are users' arrays, in the layout that `stack` was given. They need the
    right dtype and shape, alignment and native byte order. x and gradients of the output need unit
    stride in the last axis, states are contiguous, a pair of states is a tuple. For any other
    argument, right or wrong, a method computes nothing and returns NotImplemented.

    lengths : (B,) int64, contiguous; for a ragged stack the batch sizes (T,) of a PackedSequence.
    reset, reset_reversed : (T, B) bool, contiguous, as the direction runs it.
    """

    def infer(
        self,
        x: Array,
        state: State | None,
        lengths: Array | None = ...,
        reset: Array | None = ...,
        reset_reversed: Array | None = ...,
        threads: int = ...,
        /,
    ) -> tuple[Any, State]:
        """The output (a cell's: None) and the last state. threads : the most to use, if above 0."""

    def infer_at(
        self, place: bytes, weights: Tensors, x: Any, state: Any, threads: int, seen: int | None, /
    ) -> tuple[Any, State]:
        """As `infer`, if `can_read` is true and `seen` is None or the weights' fingerprint."""

    def record(
        self,
        x: Array,
        state: State | None,
        lengths: Array | None = ...,
        reset: Array | None = ...,
        reset_reversed: Array | None = ...,
        /,
    ) -> tuple[Run, Array, State]:
        """A run with copies of the arguments, and `infer`'s results, read-only; not if ragged."""

    def forward(
        self, x: Array, state: State | None, lengths: Array | None, threads: int, /
    ) -> tuple[Any, State, Array]:
        """The results of `infer`, and a tape: a 1-D array of what else `backward` needs.

        Until `backward`, the caller keeps the results and the arguments, and does not change them.
        """

    def forward_at(
        self, place: bytes, weights: Tensors, x: Any, state: Any, threads: int, seen: int | None, /
    ) -> tuple[Any, State, Array]:
        """As `forward` without lengths, on the conditions of `infer_at`."""

    def backward(
        self,
        x: Array,
        state: State | None,
        lengths: Array | None,
        output: Array | None,
        tape: Array,
        d_output: Array | None,
        d_state: Any,
        wanted: tuple[bool, ...],
        threads: int,
        /,
    ) -> tuple[Array | None, State | None, list[Array | None]]:
        """The gradients of a pass that `forward` ran: at x, at the state, and at each parameter.

        wanted : whether to compute the gradient at x, at the state, and at each parameter, layer
            by layer and direction by direction. A gradient that is not computed is None.
        """

    def step_backward(
        self,
        x: Array,
        state: State | None,
        output: Array | None,
        tape: Array,
        d_output: Array | None,
        d_state: Any,
        wanted: tuple[bool, bool, bool],
        threads: int,
        /,
    ) -> tuple[Array | None, State | None, Array | None]:
        """The gradients of one step that `forward` ran: at x, at the state, and at the gates.

        `steps_backward` takes those at the gates. Stacks with two directions, with a projection or
        of a cell with two products in a step (gru_reset_before) return NotImplemented.

        output : the layer's output; only an RNN needs it.
        wanted : whether to compute each of the three gradients, as for `backward`.
        """

    def steps_backward(
        self,
        steps: list[tuple[Array, Array | None, Array | None, Array]],
        wanted: tuple[bool, ...],
        threads: int,
        /,
    ) -> list[Array | None]:
        """The gradients at the parameters, summed over all steps.

        steps : for each step its x, the h before it, its tape (None suffices for one layer), and
            the gradients at the gates from `step_backward`.
        """

class Run:
    """A forward pass that has run, with everything that its backward pass needs."""

    def backward(
        self, d_output: Array | None, d_state: Any, /
    ) -> tuple[Array, State, dict[str, Array]]:
        """The gradients at x, at the state, and at the parameters by name.

        d_state : in the form of a state; one of a pair may be None.
        """

def stack(
    packs: Sequence[Packed],
    names: Sequence[tuple[str | None, ...]],
    directions: int,
    one_step: bool,
    batch_first: bool,
    tensors: bool,
    ragged: bool = ...,
    /,
) -> Stack:
    """A stack of `packs`, layer by layer and direction by direction: all borrowed, or none.

    names : for each pack, the names of its parameters in the order of `pack`'s arguments, under
        which `Run.backward` returns their gradients. None: the pack has no such parameter.
    one_step : the stack is a cell: arrays have no axis T, and states no axis of layers.
    batch_first : x and the output are (B, T, ·), unless they are unbatched.
    tensors : x may be a tensor of a type given to `take_tensors`; results then are tensors, too.
    ragged : x and the output are (N, ·) without padding, as the data of a PackedSequence. Passes
        then need the batch sizes in place of `lengths`.
    """

def tape_row(
    cell: str,
    dtype: str,
    input_size: int,
    hidden_size: int,
    projection: int,
    layers: int,
    directions: int,
    /,
) -> int:
    """The numbers that one row of T*B (ragged: of N) takes in a tape of `Stack.forward`."""

def fingerprint(arrays: tuple[Array, ...], threads: int = ..., /) -> int:
    """A 64-bit hash of the contents of contiguous arrays, which tells whether they have changed.

    It is not the same on every ISA, and not safe against arrays made to deceive it.
    threads : the most threads to use, if above 0.
    """

def place(arrays: tuple[Array, ...], /) -> bytes | None:
    """An opaque record of the addresses, shapes and dtypes of arrays.

    None if one of them is not contiguous, or is no array of up to three axes.
    """

def moved(place: bytes, tensors: tuple[Any, ...], /) -> bytes | None:
    """The place of `tensors`, which must have the shapes and dtypes that `place` records.

    None if one does not, is not contiguous or aligned, or stands for the negatives of its memory.
    """

def can_read(place: bytes, weights: tuple[Any, ...], x: Any, states: Any, /) -> bool:
    """Whether a pass may read these tensors: `weights` are still where `place` says, contiguous.

    Besides, x must have elements and lie in the CPU's memory, and no tensor may stand for the
    negatives of its memory. The pass itself checks all else. states : a tensor, a tuple or None.
    """

def take_tensors(
    table: object, tensor: type, parameter: type, is_negated: Callable[[Any], bool], /
) -> bool:
    """Makes stacks and the functions around this one take a library's tensors of these types.

    table : the capsule `__dlpack_c_exchange_api__` of their library.
    is_negated : tells whether a tensor stands for the negatives of the values in its memory.
        `moved`, `can_read` and `Stack.step_backward` ask this.
    Returns whether the version of the table can be used.
    """

def empty_like(tensor: object, half: bool, /) -> Any:
    """A tensor without values in the shape of `tensor`: float32, or bfloat16 if `half`.

    Contiguous, or with the first two axes swapped in memory if those of `tensor` are. Later calls
    reuse large memory. None if `tensor` cannot be read or has more than three axes.
    """

def copy(other: object, /) -> Any:
    """A copy of a tensor or an array of floats, in the memory order that `empty_like` has.

    None if `other` is neither, has more than three axes, or is in another order.
    """

def isas() -> list[str]:
    """The ISAs compiled in, best first."""

def supported_isas() -> list[str]:
    """The ISAs compiled in that this CPU supports, best first."""

def active_isa() -> str:
    """The ISA in use; RuntimeError if RNNFAST_ISA names one that this CPU or build lacks."""

def active_amx() -> bool:
    """Whether low precision multiplies in AMX's tile registers."""

def few_rows() -> int:
    """The most rows that a float32 pass on borrowed weights takes."""

def vector_bytes() -> int:
    """The bytes of a vector in the kernels of the ISA in use."""

def get_num_threads() -> int: ...
def set_num_threads(count: int, /) -> None: ...
def set_cpu_quota(count: int, /) -> None:
    """Tells how many CPUs' time a container has; concurrent callers share no more than that."""

def use_openmp(path: str, /) -> bool:
    """Runs passes called with a number of threads on the OpenMP of the shared object at `path`.

    After that library's own work its threads spin for milliseconds, and the pool's threads would
    get half of their cores' time. A pass that takes one thread 0.2 ms or more wakes them; shorter
    ones use them up to 2 ms later, while they spin, or wake them after several in quick succession.
    Returns False, and changes nothing, if no such OpenMP is loaded or the process is a fork.
    """

def force_schedule(name: str, /) -> None:
    """For tests: sets how passes are split over threads from now on; "none": as ever."""

def last_schedule() -> str:
    """How the last pass was split over threads; "none" if it ran on one thread."""

def activation(
    name: Literal["sigmoid", "tanh"], x: NDArray, out: NDArray, /, rounds: int = 1
) -> None:
    """For tests: the kernels' sigmoid or tanh of a contiguous 1-D array, `rounds` times."""

def probe_fma(dtype: str, rounds: int, /) -> int:
    """Runs `rounds` of multiply-adds in registers; returns the number of operations."""

def probe_dot(format: str, rounds: int, /) -> int:
    """Runs `rounds` of a format's products in registers; returns the operations, two a product."""

def probe_meetings(threads: int, rounds: int, /) -> int:
    """Makes threads wait for each other `rounds` times, as layers do; returns how many came."""

def probe_read(array: NDArray, rounds: int, /) -> float:
    """The sum of the full vectors of a contiguous 1-D array, which is read `rounds` times."""
