"""The compiled module. `rnnfast/_backend.py` says what the arrays are; the binding checks them."""

from typing import Literal

from numpy.typing import NDArray

class Packed:
    """One layer's weights in panels, for the ISA in use."""

class Saved:
    """What a forward pass keeps for its backward pass."""

def pack(
    cell: str,
    weight_ih: NDArray,
    weight_hh: NDArray,
    bias_ih: NDArray | None,
    bias_hh: NDArray | None,
    weight_hr: NDArray | None,
    /,
) -> Packed: ...
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
def isas() -> list[str]:
    """The ISAs compiled in, best first."""

def supported_isas() -> list[str]:
    """Those of them that this CPU has."""

def active_isa() -> str:
    """The ISA in use; RuntimeError where RNNFAST_ISA names one that cannot be."""

def vector_bytes() -> int:
    """The width of that ISA's vectors, as its kernels were compiled."""

def get_num_threads() -> int: ...
def set_num_threads(count: int, /) -> None: ...
def activation(name: Literal["sigmoid", "tanh"], x: NDArray, out: NDArray, /) -> None:
    """The kernels' own sigmoid or tanh of a contiguous 1-D array, for tests of its accuracy."""
def probe_fma(dtype: str, rounds: int, /) -> int:
    """Does multiplications and additions in registers for `rounds`, and tells how many."""

def probe_read(array: NDArray, rounds: int, /) -> float:
    """The sum of a contiguous 1-D array, read `rounds` times but for what fills no vector."""
