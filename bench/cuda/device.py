"""The device to measure: its description, and the timing of calls on it."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from typing import Any

import rnnfast
from rnnfast import _cuda


class NoDevice(Exception):
    """There is no device to measure; the text says why."""


class Device:
    """The current CUDA device of torch; tests replace it by another one.

    where : torch's name for the device of its tensors.
    """

    where = "cuda"

    def time_block(self, run: Callable[[], object], calls: int) -> float:
        """The seconds of a call, from `calls` calls in a row between two events on the stream.

        If a call takes the host longer than the device, this is the host's time.
        """
        import torch

        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / calls

    def describe(self) -> dict[str, Any]:
        """The name and the properties of the device, for the record."""
        import torch

        found = torch.cuda.get_device_properties(0)
        return {
            "kind": "cuda",
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "processors": found.multi_processor_count,
            "memory_gib": round(found.total_memory / 2**30),
            "driver": _driver(),
        }

    def versions(self) -> dict[str, str]:
        """The versions of the CUDA libraries that torch uses."""
        import torch

        return {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}


def find() -> Device:
    """The device.

    Raises
    ------
    NoDevice : there is no device, no torch, or no library of kernels for it.
    """
    if importlib.util.find_spec("torch") is None:
        raise NoDevice("needs torch, which is not installed")
    import torch

    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        raise NoDevice(f"there is no CUDA device (torch {torch.__version__} is for {built})")
    if _cuda.library(rnnfast.__version__) is None:
        raise NoDevice(f"the CUDA kernels: {_cuda.describe(rnnfast.__version__)}")
    return Device()


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
