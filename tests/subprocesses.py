"""New processes for what can be chosen, or imported, only once in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

# `python -c` puts the current folder on the path, and Python 3.10 cannot be told not to: it must
# not be the repository's root, where the source tree of the package lies.
TESTS = Path(__file__).resolve().parent
CHOICES = ("RNNFAST_BACKEND", "RNNFAST_ISA", "RNNFAST_AMX", "RNNFAST_NUM_THREADS")


def python(
    code: str, *options: str, cwd: Path = TESTS, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a new process, in which nothing has been chosen yet.

    environment : variables to set, or with None to unset, over those of this process.
    """
    wanted = {**os.environ, **dict.fromkeys(CHOICES), **environment}
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=cwd,
        env={name: value for name, value in wanted.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
    )


def results_by_isa(native: ModuleType, module: str, folder: Path) -> dict[str, dict[str, NDArray]]:
    """What `module.results()` of the tests gives on each ISA of this machine, best first.

    Without AMX, whose sums of bfloat16 have an order of their own.
    """
    found = {}
    for isa in native.supported_isas():
        code = (
            f"import sys; sys.path[:0] = {[str(TESTS), *sys.path]!r}\n"
            f"import numpy as np, {module} as tests\n"
            f"np.savez({str(folder / isa)!r}, **tests.results())"
        )
        done = python(code, RNNFAST_ISA=isa, RNNFAST_AMX="0", RNNFAST_BACKEND="native")
        assert done.returncode == 0, f"{isa}: {done.stderr}"
        with np.load(folder / f"{isa}.npz") as file:
            found[isa] = dict(file)
    return found
