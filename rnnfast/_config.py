"""What is in use, and how to choose: backend, instruction set (ISA), threads."""

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
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # as a container sees its own cgroup (v2)
_threads: int | None = None  # what `set_num_threads` was given


@functools.cache
def version() -> str:
    """The version of the installed distribution, which takes half a millisecond to read."""
    try:
        return importlib.metadata.version("rnnfast")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"  # imported from a source tree that is not installed


def set_backend(name: str) -> None:
    """Puts a backend in use: "native" (compiled), "numba" or "numpy" (the reference).

    Layers pack their weights anew for it; tapes that exist keep the backend they were made with.

    Raises
    ------
    ValueError : an unknown name.
    RuntimeError : it is not available here; the one in use stays.
    """
    _backend.use(name)


def active_isa() -> str | None:
    """The ISA in use, one of those in `show_config()["isas"]`.

    None where the backend in use is not `native`: NumPy and Numba choose for themselves.

    Raises
    ------
    RuntimeError : `RNNFAST_ISA` forces one that this CPU or build lacks.
    """
    native = _native() if _backend.current().name == "native" else None
    return native.active_isa() if native else None


def set_num_threads(n: int) -> None:
    """Sets how many threads a call of the backend `native` may use.

    The other backends run on the thread that calls, but for products of matrices: these are
    NumPy's, whose BLAS has threads of its own.

    Raises
    ------
    TypeError, ValueError : `n` is no integer in 1..1024.
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
    """How many threads a call may use.

    What `set_num_threads` or threadpoolctl set last, else `RNNFAST_NUM_THREADS`, else the number
    of CPUs that this process may use: those that it may run on, within a container's quota.

    Raises
    ------
    ValueError : `RNNFAST_NUM_THREADS` is no integer in 1..1024.
    """
    native = _native() if _backend.current().name == "native" else None
    return native.get_num_threads() if native else wanted_threads()


def wanted_threads() -> int:
    """The number of threads that the native backend is to start with."""
    if _threads is not None:
        return _threads
    text = os.environ.get("RNNFAST_NUM_THREADS")
    if text:
        if not text.strip().isdecimal() or not 1 <= int(text) <= _MOST_THREADS:
            raise ValueError(
                f"RNNFAST_NUM_THREADS: expected an integer in 1..{_MOST_THREADS}, got {text!r}"
            )
        return int(text)
    if hasattr(os, "sched_getaffinity"):  # Linux; fewer than cpu_count in a job
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    return min(cpus, cpu_quota())


def cpu_quota() -> int:
    """How many CPUs' time a container may take, rounded up."""
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # there is none, or it is "max"
        return _MOST_THREADS


class Configuration(dict[str, Any]):
    """What `show_config` returns: a dict that prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:{width}}  {_text(value)}" for name, value in self.items())


def show_config() -> Configuration:
    """Prints what is in use, and returns it.

    Returns
    -------
    config : version, backend, native (whether the compiled module is there, or why not), isa,
        isas (those compiled in), amx (whether low precision multiplies in the CPU's tile registers;
        None where the backend is not `native`), threads, cuda (whether it was found, or why not).

    Where there is a library of CUDA kernels it counts the devices, which initialises CUDA: a
    process that is forked afterwards cannot use it, as after `torch.cuda.is_available()`.

    Raises
    ------
    RuntimeError, ValueError : a backend, ISA or number of threads that the environment forces
        is not available.
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
    """Whether low precision multiplies in AMX's registers; None if not on the backend `native`."""
    native = _native() if active_isa() else None
    return native.active_amx() if native else None


def _native() -> ModuleType | None:
    """The compiled module, if it has been loaded."""
    return sys.modules.get(_backend.NATIVE_MODULE)


def _describe_native() -> tuple[str, list[str]]:
    """Whether the compiled module works, or why not, and the ISAs it has kernels for."""
    if not _backend.native_is_installed():
        return f"missing: {_source_tree() or 'a pure-Python install, it was not built'}", []
    try:
        return "compiled", list(importlib.import_module(_backend.NATIVE_MODULE).isas())
    except ImportError as error:
        return f"cannot be imported: {error}", []


def fallback_warning() -> str:
    """What `import rnnfast` says where there is no compiled module."""
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
    """What to say of the source tree that this package lies in, if it is not an installed one."""
    root = Path(__file__).parents[1]
    if not (root / "pyproject.toml").exists():
        return ""
    return f"imported from the source tree {root}, which has no compiled module: run outside of it"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def register_with_threadpoolctl() -> None:
    """Lets threadpoolctl, where it is installed, see and limit the native backend's threads."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return
    import threadpoolctl

    if not hasattr(threadpoolctl, "register"):  # before 3.2
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
