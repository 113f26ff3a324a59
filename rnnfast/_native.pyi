"""The compiled module. `rnnfast/_backend.py` says what the arrays are; the binding checks them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from numpy.typing import NDArray

Array = Any  # a NumPy array; or, after `take_tensors`, a tensor
State = Any  # h, or a pair (h, c)
Tensors = tuple[Array, ...]

# The C functions of csrc/api/functions.h, in a capsule, for `rnnfast.stream`.
c_functions: Any

class Packed:
    """One layer's weights: in panels, for the ISA in use, or where `borrow` found them."""

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
    """A copy in panels; `format` : a name in core/formats.inc, of float32 weights."""

def repack(packs: list[Packed], weights: tuple[Array, ...], /) -> list[Packed] | None:
    """Others as `packs`, of other weights of the same layers: all that these have, in their order.

    Borrowed ones keep them. None where they are more or fewer, or one is not contiguous, aligned,
    or of the shape and dtype of that before.
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
    """The arrays themselves, kept and read in each pass, which gives the bits of `pack`.

    A stack of them runs passes of one step and few rows, without lengths and resets; it answers
    NotImplemented to others. The backward pass, too, reads them as they are when it runs; of one
    step and layer without gradients at x and at the state it reads none, and takes any rows.
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
    """The packed weights of a layer or cell, which runs whole passes of it.

    Its arguments are arrays as users have them, in the layout of `stack`: of the right dtype and
    shape, aligned, in native byte order; x and gradients of the output with unit stride in the
    last axis, states contiguous; a pair of states in a tuple. Of everything else, right or wrong,
    it computes nothing and returns NotImplemented.

    lengths : (B,) int64; of a ragged stack, in their place, (T,) batch sizes, as a PackedSequence
        has them. reset, reset_reversed : (T, B) bool, as either direction runs it. All contiguous.
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
        """The output, a cell's None, and the last state; on up to `threads`, if above 0."""

    def infer_at(
        self, place: bytes, weights: Tensors, x: Any, state: Any, threads: int, seen: int | None, /
    ) -> tuple[Any, State]:
        """The same if `can_read` is true and the weights' fingerprint is `seen`, or that None."""

    def record(
        self,
        x: Array,
        state: State | None,
        lengths: Array | None = ...,
        reset: Array | None = ...,
        reset_reversed: Array | None = ...,
        /,
    ) -> tuple[Run, Array, State]:
        """The same, read-only, and a run with copies of the arguments; not of a ragged stack."""

    def forward(
        self, x: Array, state: State | None, lengths: Array | None, threads: int, /
    ) -> tuple[Any, State, Array]:
        """What `infer` gives, and a tape: a 1-D array of what else `backward` needs, if anything.

        The caller keeps all of it, and the arguments, as they are.
        """

    def forward_at(
        self, place: bytes, weights: Tensors, x: Any, state: Any, threads: int, seen: int | None, /
    ) -> tuple[Any, State, Array]:
        """Of one step to `forward` as `infer_at` to `infer`."""

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

        wanted : for x, for the state, and for each parameter, layer by layer and direction by
            direction, whether its gradient is to be computed; None stands for the others.
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

        The last are rows for `steps_backward`. Not of two directions, of a projection, nor of a
        cell with two products in a step.

        output : of a layer; only an RNN reads it.
        wanted : of each of the three, as of `backward`.
        """

    def steps_backward(
        self,
        steps: list[tuple[Array, Array | None, Array | None, Array]],
        wanted: tuple[bool, ...],
        threads: int,
        /,
    ) -> list[Array | None]:
        """The gradients at the parameters, of all steps together.

        steps : of each its x, the h before it, its tape, which one layer does not need, and what
            `step_backward` gave for the gates.
        """

class Run:
    """A forward pass that has run, with all that its backward pass needs."""

    def backward(
        self, d_output: Array | None, d_state: Any, /
    ) -> tuple[Array, State, dict[str, Array]]:
        """The gradients at x, at the state, and at the parameters by name.

        d_state : as a state; one of a pair may be None.
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

    names : for each pack, those of its parameters in the order of `pack`'s arguments, by which
        `Run.backward` returns their gradients; None: the pack has no such parameter.
    one_step : a cell's: arrays have no T, and states no axis of layers.
    batch_first : x and the output are (B, T, ·), unless they are unbatched.
    tensors : x may be a tensor of a type given to `take_tensors`, and the results then are, too.
    ragged : x and the output are (N, ·), the steps of all sequences and no padding, as the data of
        a PackedSequence; the batch sizes that stand for lengths must be given.
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
    """How much of a tape of `Stack.forward` each row of T*B takes; of a ragged stack, of N."""

def fingerprint(arrays: tuple[Array, ...], threads: int = ..., /) -> int:
    """A number of 64 bits for the contents of contiguous arrays: another one when they change.

    Not the same on every ISA, and no defence against whoever means to deceive.
    threads : no more than so many, if above 0.
    """

def place(arrays: tuple[Array, ...], /) -> bytes | None:
    """Something that tells where arrays lie in memory, of which shapes and dtypes.

    None where one is not contiguous, or not an array of up to three axes.
    """

def moved(place: bytes, tensors: tuple[Any, ...], /) -> bytes | None:
    """The place of tensors of the shapes and dtypes of those at `place`, wherever they lie.

    None where one is another, or is not contiguous or aligned, or the negative of what lies there.
    """

def can_read(place: bytes, weights: tuple[Any, ...], x: Any, states: Any, /) -> bool:
    """Whether a pass may read them all: tensors, and `weights` are still where `place` says.

    x has elements and lies in the CPU's memory. states : a tensor, a tuple or None. No tensor is
    the negatives of what lies there. All else is for the pass to find, or a TypeError.
    """

def take_tensors(
    table: object, tensor: type, parameter: type, is_negated: Callable[[Any], bool], /
) -> bool:
    """From now on `place` and what is asked of it, `fingerprint`, `repack` and stacks take these.

    table : their library's capsule `__dlpack_c_exchange_api__`.
    is_negated : whether a tensor stands for the negatives of what lies in its memory, which shows
        in `moved` and `can_read` alone.
    Returns whether the table's version is one that can be used.
    """

def empty_like(tensor: object, half: bool, /) -> Any:
    """A tensor of those types in the shape of another, without values: float32, or bfloat16.

    Contiguous, or but for two axes, if that other is. Its memory, where it is large, is kept from
    call to call. None where the other is none, or has more than three axes.
    """

def copy(other: object, /) -> Any:
    """A tensor of those types with the values of another, in memory as that of `empty_like`.

    Or an array of floats. None where the other is neither, is not contiguous, nor but for two axes,
    or has more than three axes.
    """

def isas() -> list[str]:
    """The ISAs compiled in, best first."""

def supported_isas() -> list[str]:
    """Those of them that this CPU has."""

def active_isa() -> str:
    """The ISA in use; RuntimeError where RNNFAST_ISA names one that cannot be."""

def active_amx() -> bool:
    """Whether formats are multiplied in AMX's tile registers."""

def few_rows() -> int:
    """The most rows of a float32 pass on borrowed weights."""

def vector_bytes() -> int:
    """The width of that ISA's vectors, as its kernels were compiled."""

def get_num_threads() -> int: ...
def set_num_threads(count: int, /) -> None: ...
def set_cpu_quota(count: int, /) -> None:
    """So many CPUs' time is all that the callers of several threads have together, if so much."""

def use_openmp(path: str, /) -> bool:
    """Whether the loaded shared object at `path` calls an OpenMP, and the process is no fork.

    From now on its threads run the passes that are called with a number of threads, if one thread
    would take some 0.2 ms or more for them, and shorter ones within 2 ms of such. After that
    library's own work they spin for milliseconds, and would have half of the time of the cores that
    the pool's threads want.
    """

def force_schedule(name: str, /) -> None:
    """For tests: how passes are shared out to threads from now on; "none": as estimates say."""

def last_schedule() -> str:
    """How the last pass was shared out: "none" where it ran on one thread."""

def activation(
    name: Literal["sigmoid", "tanh"], x: NDArray, out: NDArray, /, rounds: int = 1
) -> None:
    """The kernels' own sigmoid or tanh of a contiguous 1-D array, `rounds` times; for tests."""

def probe_fma(dtype: str, rounds: int, /) -> int:
    """Does multiplications and additions in registers for `rounds`, and tells how many."""

def probe_dot(format: str, rounds: int, /) -> int:
    """Products of words of a format in registers; returns the operations, two a product."""

def probe_meetings(threads: int, rounds: int, /) -> int:
    """So many threads meet `rounds` times, as in the steps of a layer; returns how many came."""

def probe_read(array: NDArray, rounds: int, /) -> float:
    """The sum of a contiguous 1-D array, read `rounds` times but for what fills no vector."""
