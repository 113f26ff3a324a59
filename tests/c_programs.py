"""Programs against the C library of the rnnfast that is tested: its flags, and compiling."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
STRICT = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O1"]


def run(*command, status: int | None = 0, **options) -> subprocess.CompletedProcess:
    """Runs a command, which must end with `status`; None: any."""
    given = {"capture_output": True, "text": True, "timeout": 300, "cwd": TESTS, **options}
    done = subprocess.run([str(word) for word in command], **given)
    assert status is None or done.returncode == status, f"{command}: {done.stdout}{done.stderr}"
    return done


def find_tool(*names: str) -> str:
    """The first of these programs that there is; skips where there is none."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs {' or '.join(names)}")
    return found


def find_source(name: str) -> Path:
    """A file or folder of the source tree; skips where there is none."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"the tests run without {name}")
    return path


def project_version() -> str:
    """The version that the library was built as."""
    return re.search(r'^version = "(.*)"$', find_source("pyproject.toml").read_text(), re.M)[1]


def library_flags(*words: str) -> list[str]:
    """What `python -m rnnfast` says; skips where this install has no C library."""
    if sys.platform == "win32":
        pytest.skip("the flags are those of cc")
    done = run(sys.executable, "-m", "rnnfast", *words, status=None)
    if done.returncode == 1:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def compile_program(source: Path, program: Path, flags: list[str] | None = None) -> Path:
    """Compiles C to `program`, by default with the flags of `python -m rnnfast`."""
    if flags is None:
        flags = library_flags("cflags", "libs")
    run(
        find_tool("cc", "gcc", "clang"),
        *STRICT,
        source,
        *flags,
        "-lm",
        "-ldl",
        "-pthread",
        "-o",
        program,
    )
    return program


def header_functions(header: str) -> set[str]:
    """The functions that rnnfast.h declares."""
    return set(re.findall(r"^RNNFAST_API\b[^;]*?\b(\w+)\(", header, re.M))


def with_path(name: str, folder) -> dict[str, str]:
    """The environment with a folder first in a list of folders."""
    return {**os.environ, name: os.pathsep.join(filter(None, [str(folder), os.environ.get(name)]))}
