"""Functions that show and choose the backend, the instruction set (ISA) and the threads."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rnnfast import _backend, _cuda, _validate

_MOST_THREADS = 1024
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # where a container sees its own cgroup (v2)
_threads: int | None = None  # the last argument of `set_num_threads`


@functools.cache
def version() -> str:
    """The version of the installed distribution; it is cached, as reading it takes 0.5 ms."""
    try:
        return importlib.metadata.version("rnnfast")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"  # imported from a source tree that is not installed


def set_backend(name: str) -> None:
    """Selects the backend for all layers and functions from now on.

    Layers pack their weights again for the new backend. Tapes and streams that exist keep the
    backend they were made with.

    Parameters
    ----------
    name : "native" (compiled), "numba" or "numpy" (the reference).

    Raises
    ------
    ValueError : `name` is not one of these.
    RuntimeError : the backend is not available here. The one in use stays in use.
    """
    _backend.use(name)


def active_isa() -> str | None:
    """The name of the ISA in use, one of `show_config()["isas"]`, such as "avx2".

    None if the backend in use is not `native`: NumPy and Numba choose an ISA for themselves.

    Raises
    ------
    RuntimeError : `RNNFAST_ISA` forces an ISA that this CPU or build lacks.
    """
    native = _native() if _backend.current().name == "native" else None
    return native.active_isa() if native else None


def set_num_threads(n: int) -> None:
    """Sets how many threads a call of the backend `native` may use.

    The other backends run on the calling thread, except for matrix products. NumPy computes these
    in its BLAS, which has threads of its own.

    Parameters
    ----------
    n : the number of threads, 1 to 1024.

    Raises
    ------
    TypeError : `n` is not an integer.
    ValueError : `n` is not in 1..1024.
    """
    global _threads
    count = _validate.integer("n", n, 1)
    if count > _MOST_THREADS:
        raise ValueError(f"n: expected at most {_MOST_THREADS}, got {count}")
    _threads = count
    native = _native()
    if native:
        native.set_num_threads(_threads)


def get_num_threads() -> int:
    """How many threads a call of the backend `native` may use.

    The number is the one that `set_num_threads` or threadpoolctl set last. If neither did, it is
    `RNNFAST_NUM_THREADS`. If that is not set either, it is the number of CPUs that this process
    may run on, or a container's CPU quota, rounded up, if that is less.

    Raises
    ------
    ValueError : `RNNFAST_NUM_THREADS` is not an integer in 1..1024.
    """
    native = _native() if _backend.current().name == "native" else None
    return native.get_num_threads() if native else wanted_threads()


def wanted_threads() -> int:
    """The number of threads that the native backend starts with."""
    if _threads is not None:
        return _threads
    text = os.environ.get("RNNFAST_NUM_THREADS")
    if text:
        if not text.strip().isdecimal() or not 1 <= int(text) <= _MOST_THREADS:
            raise ValueError(
                f"RNNFAST_NUM_THREADS: expected an integer in 1..{_MOST_THREADS}, got {text!r}"
            )
        return int(text)
    if hasattr(os, "sched_getaffinity"):  # Linux; in a batch job fewer than cpu_count
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    return min(cpus, cpu_quota())


def cpu_quota() -> int:
    """The container's CPU quota in CPUs, rounded up; `_MOST_THREADS` if there is none."""
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # there is no such file, or it says "max"
        return _MOST_THREADS


class Configuration(dict[str, Any]):
    """The result of `show_config`: a dict that prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:{width}}  {_text(value)}" for name, value in self.items())


def show_config() -> Configuration:
    """Prints the configuration in use, and returns it.

    If the library of CUDA kernels is there, this counts the devices, which initialises CUDA. A
    process that is forked afterwards cannot use CUDA, as after `torch.cuda.is_available()`.

    Returns
    -------
    config : a dict that prints as a table, with the keys

        * version: the version of rnnfast.
        * backend: the name of the backend in use.
        * native: "compiled", or why the compiled module cannot be used.
        * isa: the ISA in use, as `active_isa` returns it.
        * isas: the list of the ISAs compiled in.
        * amx: whether low precision multiplies in the CPU's tile registers (AMX); None if the
          backend is not `native`.
        * threads: the number of threads, as `get_num_threads` returns it.
        * cuda: what was found of CUDA, or why it cannot be used.

    Raises
    ------
    RuntimeError, ValueError : the environment forces a backend, ISA or number of threads that is
        not available.
    """
    backend = _backend.current()
    native_state, isas = _describe_native()
    config = Configuration(
        version=version(),
        backend=backend.name,
        native=native_state,
        isa=active_isa(),
        isas=isas,
        amx=active_amx(),
        threads=get_num_threads(),
        cuda=_cuda.describe(version()),
    )
    print(config)
    return config


def active_amx() -> bool | None:
    """Whether low precision multiplies in AMX's registers; None if the backend is not `native`."""
    native = _native() if active_isa() else None
    return native.active_amx() if native else None


def _native() -> ModuleType | None:
    """The compiled module, if it has been loaded."""
    return sys.modules.get(_backend.NATIVE_MODULE)


def _describe_native() -> tuple[str, list[str]]:
    """The entries native and isas of `show_config`."""
    if not _backend.native_is_installed():
        return f"missing: {_source_tree() or 'a pure-Python install, it was not built'}", []
    try:
        return "compiled", list(importlib.import_module(_backend.NATIVE_MODULE).isas())
    except ImportError as error:
        return f"cannot be imported: {error}", []


def fallback_warning() -> str:
    """The warning that `import rnnfast` gives if there is no compiled module."""
    found = _source_tree() or "installed without its compiled module"
    text = (
        f"rnnfast was {found}; it falls back to Numba, or else to NumPy, which is slow. "
        "RNNFAST_BACKEND=numba or numpy says that this is wanted."
    )
    if not _source_tree():
        text += (
            " In its source folder, `RNNFAST_REQUIRE_NATIVE=1 pip install --force-reinstall "
            "--no-cache-dir .` shows why the compiled module could not be built (a C++17 compiler "
            "and Python's headers are needed)"
        )
    return text


def _source_tree() -> str:
    """How to report that this package was imported from a source tree; "" if it was installed."""
    root = Path(__file__).parents[1]
    if not (root / "pyproject.toml").exists():
        return ""
    return f"imported from the source tree {root}, which has no compiled module: run outside of it"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def register_with_threadpoolctl() -> None:
    """Lets threadpoolctl, if it is installed, see and limit the native backend's threads."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return
    import threadpoolctl

    if not hasattr(threadpoolctl, "register"):  # threadpoolctl before 3.2
        return

    class RnnfastController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "rnnfast"
        internal_api = "rnnfast"
        filename_prefixes = ("_native.",)
        check_symbols = ("rnnfast_get_num_threads",)

        def get_num_threads(self) -> int:
            return self.dynlib.rnnfast_get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.rnnfast_set_num_threads(num_threads)

        def get_version(self) -> str:
            return version()

    threadpoolctl.register(RnnfastController)
