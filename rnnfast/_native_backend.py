"""The backend `native`: the compiled module behind the interface that all backends have."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from rnnfast import _config
from rnnfast._backend import NATIVE_MODULE, Backward, Forward
from rnnfast._cells import Cell, Weights
from rnnfast._validate import Memory


class NativeBackend:
    """The backend `native`; see `rnnfast._backend.Backend`."""

    name = "native"

    def __init__(self, module: Any) -> None:
        self._module = module
        self.memory: Memory = _KeptMemory(module)
        # `_native.pyi` documents these functions. Methods around them would only cost time.
        self.can_read = module.can_read
        self.empty_like = module.empty_like
        self.few_rows: int = module.few_rows()
        self.fingerprint = module.fingerprint
        self.moved = module.moved
        self.place = module.place
        self.repack = module.repack
        self.tape_row = module.tape_row

    def pack(self, cell: Cell, weights: Weights, format_name: str | None = None) -> Any:
        """A private copy of the weights, in panels for the ISA in use."""
        return self._module.pack(cell.name, *weights, format_name)

    def borrow(self, cell: Cell, weights: Weights) -> Any:
        """Contiguous weights, used in place without a copy; see `rnnfast._native.borrow`."""
        return self._module.borrow(cell.name, *weights)

    def stack(
        self,
        packs: Sequence[Any],
        names: Sequence[tuple[str | None, ...]],
        directions: int,
        one_step: bool,
        batch_first: bool,
        tensors: bool = False,
        ragged: bool = False,
    ) -> Any:
        """An object that runs whole passes of a layer or cell; see `rnnfast._native.stack`."""
        return self._module.stack(packs, names, directions, one_step, batch_first, tensors, ragged)

    def forward(self, cell: Cell, packed: Any, args: Forward, training: bool) -> Any:
        """See `rnnfast._backend.Backend`."""
        return self._module.forward(
            packed,
            args.x,
            args.h0,
            args.c0,
            args.lengths,
            args.reset,
            args.reverse,
            args.y,
            args.hn,
            args.cn,
            training,
        )

    def backward(self, cell: Cell, packed: Any, saved: Any, args: Forward, grads: Backward) -> None:
        """See `rnnfast._backend.Backend`."""
        self._module.backward(
            packed,
            saved,
            args.x,
            args.h0,
            args.c0,
            args.lengths,
            args.reset,
            args.reverse,
            args.y,
            grads.dy,
            grads.dhn,
            grads.dcn,
            grads.dx,
            grads.dh0,
            grads.dc0,
            *grads.weights,
        )


class _KeptMemory(Memory):
    """The host's memory, where copies reuse the memory of freed copies: new pages cost time."""

    def __init__(self, module: Any) -> None:
        self.copy = module.copy


_backend: NativeBackend | None = None
_threads_are_set = False


def preload() -> None:
    """Loads the compiled module, if possible, so that threadpoolctl finds it from the start.

    Errors of the module or the environment are suppressed here; its first use raises them.
    """
    with contextlib.suppress(ImportError, ValueError):
        _module()


def take_tensors(table: Any, tensor: type, parameter: type, is_negated: Any) -> bool:
    """Makes the compiled module take a library's tensors in place of arrays, if it can.

    Returns whether it does. See `rnnfast._native.take_tensors`.

    table : the library's capsule of DLPack functions; None: the library has none.
    """
    try:
        given = table, tensor, parameter, is_negated
        return table is not None and _module().take_tensors(*given)
    except (ImportError, ValueError):  # the module's first use raises it again
        return False


def use_openmp(path: str) -> None:
    """Runs long passes over a library's tensors on the threads of that library's OpenMP, if any.

    path : the path of a shared object of the library. See `rnnfast._native.use_openmp`.
    """
    with contextlib.suppress(ImportError, ValueError):  # the module's first use raises it again
        _module().use_openmp(path)


def copy_of(tensor: Any) -> Any:
    """A copy of a tensor of the types that `take_tensors` gave; see `rnnfast._native.copy`."""
    return _module().copy(tensor)


def _module() -> ModuleType:
    global _threads_are_set
    module = importlib.import_module(NATIVE_MODULE)
    if not _threads_are_set:  # only once: the user may change them later
        module.set_num_threads(_config.wanted_threads())
        module.set_cpu_quota(_config.cpu_quota())
        _threads_are_set = True
    return module


def load() -> NativeBackend:
    """The backend, with the ISA chosen and the number of threads set.

    Raises
    ------
    ImportError : this install has no compiled module, or it cannot be imported.
    RuntimeError : `RNNFAST_ISA` forces an ISA that this CPU or build lacks, or `RNNFAST_AMX` is
        neither 0 nor 1.
    ValueError : `RNNFAST_NUM_THREADS` is not an integer in 1..1024.
    """
    global _backend
    if _backend is None:
        module = _module()
        module.active_isa()  # raises here rather than in the first call of a layer
        _backend = NativeBackend(module)
    return _backend
