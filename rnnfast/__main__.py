"""The command line: `python -m rnnfast` and what to do."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import rnnfast
from rnnfast import _config, show_config

_USAGE = """usage: python -m rnnfast info | demo [options] | flags...

  info   print what is in use: version, backend, instruction set, threads
  demo   run the demonstration; demo --help tells its options

  flags for C programs, one or more, printed on one line:
    cflags        to compile with rnnfast.h
    libs          to link with librnnfast
    cmakedir      the folder for CMake's rnnfast_DIR
    pkgconfigdir  the folder for PKG_CONFIG_PATH"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command, from the process's arguments without `argv`; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("info", "demo"):
        try:
            _config.active_amx(), _config.get_num_threads()
        except (RuntimeError, ValueError) as error:  # what the environment asks for is not there
            print(f"rnnfast: {error}", file=sys.stderr)
            return 1
    if command == "info" and not rest:
        show_config()
        return 0
    if command == "demo":
        from rnnfast import demo  # not needed by the others, and slow to import

        return demo.main(rest) or 0
    if argv and set(argv) <= set(_flags(Path())):
        return _print_flags(argv)
    wanted = command in ("-h", "--help")
    print(_USAGE, file=sys.stdout if wanted else sys.stderr)
    return 0 if wanted else 2


def _flags(root: Path) -> dict[str, list[str]]:
    """What each word asks for, of the C library whose include/ and lib/ are in `root`."""
    lib = root / "lib"
    rpath = [] if sys.platform == "win32" else [f"-Wl,-rpath,{lib}"]
    return {
        "cflags": [f"-I{root / 'include'}"],
        "libs": [f"-L{lib}", "-lrnnfast", *rpath],
        "cmakedir": [str(lib / "cmake" / "rnnfast")],
        "pkgconfigdir": [str(lib / "pkgconfig")],
    }


def _print_flags(words: list[str]) -> int:
    # An editable install has two folders: the source's, and that of what was built.
    roots = (Path(folder).absolute() for folder in rnnfast.__path__)
    root = next((root for root in roots if (root / "include" / "rnnfast.h").is_file()), None)
    if root is None:
        print(
            "rnnfast: this install has no C library: there was no compiler for it",
            file=sys.stderr,
        )
        return 1
    flags = _flags(root)
    print(shlex.join(flag for word in words for flag in flags[word]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
