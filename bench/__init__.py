"""The benchmark: `python -m bench` from the repository's root; `--help` tells the rest.

Started like that, the root is first on `sys.path`, and with it the source tree of the package,
which holds no compiled module unless it was built in place. Without one the root goes to the end
of the path, so that `import rnnfast` finds the installed package.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def path_for_installed(path: list[str], root: Path) -> list[str]:
    """`path` with `root` at its end, where it is on it and has a package but no compiled module."""
    package = root / "rnnfast"
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    if any((package / f"_native{suffix}").is_file() for suffix in suffixes):
        return list(path)
    # "" is the current folder, wherever the process goes.
    rest = [entry for entry in path if Path(entry or os.curdir).resolve() != root]
    return rest + [str(root)] * (len(rest) < len(path))


sys.path[:] = path_for_installed(sys.path, ROOT)
