"""The machine, the system and the versions with which a benchmark ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import rnnfast
from bench import ROOT
from bench.peers import PEERS
from rnnfast import _backend, _config

CPUS = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")


def cores() -> list[int]:
    """One logical CPU of each physical core that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    seen, chosen = set(), []
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        core = siblings.read_text() if siblings.exists() else str(cpu)
        if core not in seen:
            seen.add(core)
            chosen.append(cpu)
    return chosen


def describe() -> dict[str, Any]:
    """The processor, its caches, the system, and the backend and ISA of rnnfast in use."""
    return {
        "cpu": _cpu_name(),
        "cores": len(cores()),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "backend": _backend.current().name,
        "isa": rnnfast.active_isa(),
        "amx": _config.active_amx(),
    }


def versions() -> dict[str, str]:
    """The versions of Python, of rnnfast, and of the installed packages of all peers."""
    found = {"python": platform.python_version(), "rnnfast": rnnfast.__version__}
    for package in ("numpy", *sorted({p for entry in PEERS.values() for p in entry.packages})):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # the record lists the missing peers elsewhere
    return found


def commit() -> str | None:
    """The commit of the source tree, with a `+` if files differ from it; None without git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_name() -> str:
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    lines = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", text, re.MULTILINE))
    name = lines.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= lines.keys():  # a virtual machine's name often lacks these
        name += f" (family {lines['cpu family']}, model {lines['model']})"
    return name


def _caches() -> dict[str, str]:
    """The sizes of the first CPU's data caches by level, such as {"L1": "32K"}."""
    sizes = {}
    for index in sorted((CPUS / "cpu0" / "cache").glob("index*")):
        kind, level, size = ((index / f).read_text().strip() for f in ("type", "level", "size"))
        if kind != "Instruction":
            sizes[f"L{level}"] = size
    return sizes
