"""The benchmark: run `python -m bench` from the repository's root; `--help` lists the options.

That command puts the root first on `sys.path`, and with it the package's source tree, which has no
compiled module unless it was built in place. If it has none, the root is moved to the end of the
path, so that `import rnnfast` finds the installed package.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def path_for_installed(path: list[str], root: Path) -> list[str]:
    """`path` with its entry `root` moved to the end if the package there is not compiled."""
    package = root / "rnnfast"
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    if any((package / f"_native{suffix}").is_file() for suffix in suffixes):
        return list(path)
    # The entry "" stands for the current folder, even after a change of folder.
    rest = [entry for entry in path if Path(entry or os.curdir).resolve() != root]
    return rest + [str(root)] * (len(rest) < len(path))


sys.path[:] = path_for_installed(sys.path, ROOT)
