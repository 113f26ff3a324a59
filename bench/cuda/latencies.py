"""Compiles and runs `bench/cuda_latencies.cu`, which measures exchanges between blocks."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench import ROOT

SOURCE = ROOT / "bench" / "cuda_latencies.cu"
NAMES = {
    "grid_sync": "grid.sync, a block of 256 threads on each processor",
    "cluster_sync": "cluster.sync, all blocks of one cluster",
    "ring": "st.async from a block of a cluster to the next, which waits for it",
    "l2_exchange": "all processors wait for each other at a counter in L2",
}


def architecture(capability: str) -> str:
    """The architecture for nvcc; Hopper's "sm_90a" includes the features that only it has."""
    number = capability.replace(".", "")
    return f"sm_{number}a" if number == "90" else f"sm_{number}"


def build(program: Path, capability: str) -> str | None:
    """Compiles the program; returns None, or why this failed."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return "not measured: there is no nvcc"
    flags = ["-std=c++17", "-O3", f"-arch={architecture(capability)}"]
    done = subprocess.run(
        [nvcc, *flags, str(SOURCE), "-o", str(program)], capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"not measured: nvcc: {_last_line(done.stderr)}"


def measure(capability: str) -> dict[str, Any]:
    """The nanoseconds by the names in `NAMES`, and the processors and the blocks of the cluster.

    If the device has no clusters, their entries are missing. If nothing could be measured, the only
    entry is `error`.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "latencies")
        error = build(program, capability)
        if error is not None:
            return {"error": error}
        try:
            done = subprocess.run([program], capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return {"error": "not measured: the program hangs"}
    if done.returncode:
        return {"error": f"not measured: {_last_line(done.stderr)}"}
    return json.loads(done.stdout)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["failed without a word"])[-1]
