"""The command line: `python -m rnnfast info` and `python -m rnnfast demo`."""

from __future__ import annotations

import sys

from rnnfast import show_config

_USAGE = """usage: python -m rnnfast info | demo [options]

  info   print what is in use: version, backend, instruction set, threads
  demo   run the demonstration; demo --help tells its options"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command, from the process's arguments without `argv`; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command == "info" and not rest:
        show_config()
        return 0
    if command == "demo":
        from rnnfast import demo  # not needed by the others, and slow to import

        return demo.main(rest) or 0
    wanted = command in ("-h", "--help")
    print(_USAGE, file=sys.stdout if wanted else sys.stderr)
    return 0 if wanted else 2


if __name__ == "__main__":
    sys.exit(main())
