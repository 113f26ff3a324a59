"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from bench import ROOT, floors, records, runs
from bench.compare import compare
from bench.cuda import main as cuda_main
from bench.cuda.cases import cases as cuda_cases
from bench.peers import BASELINE, DROPIN, PEERS
from bench.shapes import CELLS, NAMED, PRESETS

DEFAULT_OUT = Path("rnnfast-bench.json")
EPILOG = """examples:
  python -m bench                                   the quick preset, two minutes
  python -m bench --preset full --out full.json --check --report
  python -m bench --preset torch --check            rnnfast.torch beside torch.nn
  python -m bench --preset streams --check          single steps, bfloat16 and int8
  python -m bench --cells lstm --shapes 100-1-128-128 --threads 1
  python -m bench --load full.json --report         docs/BENCHMARKS.md and its pictures
  python -m bench --compare before.json after.json
  python -m bench --device cuda --out gpu.json --check --report
                                                    rnnfast.torch beside cuDNN on a GPU

exit status: 0; 1 where something failed to be measured, or with --check where a floor does not
hold; 2 for a mistake in the options."""


def _list_of(known: Any) -> Callable[[str], Any]:
    """An argparse type that reads names separated by commas, each of them in `known`."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"expected some of {', '.join(known)}, got {name!r}"
                )
        return names

    return parse


def _threads(text: str) -> tuple[int, ...]:
    return tuple(map(int, _list_of(("1", "2"))(text)))


def parser() -> argparse.ArgumentParser:
    """The options, with their help."""
    result = argparse.ArgumentParser(
        "python -m bench",
        description="Times rnnfast's layers beside those of other libraries, in turn, once each "
        "answer has been found to be the same.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = result.add_argument_group("what is measured")
    what.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: the cells of --cells in the --shapes T-B-H, or all; other options of what is "
        "measured are those of the CPU; default: %(default)s",
    )
    what.add_argument("--preset", choices=PRESETS, default="quick", help="default: %(default)s")
    what.add_argument(
        "--cells",
        type=_list_of(CELLS),
        default=CELLS,
        metavar="CELL,...",
        help=f"of {', '.join(CELLS)}; default: all",
    )
    what.add_argument(
        "--shapes",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="SHAPE,...",
        help="T-B-I-H, instead of the preset's; --list-shapes tells them all",
    )
    what.add_argument(
        "--threads",
        type=_threads,
        default=(1, 2),
        metavar="N,...",
        help="1, 2 or 1,2; default: both",
    )
    what.add_argument(
        "--peers",
        type=_list_of(PEERS),
        default=tuple(PEERS),
        metavar="PEER,...",
        help=f"of {', '.join(n for n in PEERS if n != BASELINE)}; default: all",
    )
    what.add_argument(
        "--yardstick",
        type=Path,
        metavar="LIBRARY",
        help="a shared library with a plain LSTM (bench/peers/yardstick.py), timed as well",
    )
    what.add_argument(
        "--load", type=Path, metavar="JSON", help="measure nothing: take what an earlier run wrote"
    )
    after = result.add_argument_group("what becomes of it")
    after.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="JSON",
        help="where the record is written; default: %(default)s",
    )
    after.add_argument("--check", action="store_true", help="fail where a floor does not hold")
    after.add_argument(
        "--report",
        nargs="?",
        type=Path,
        const=ROOT / "docs",
        metavar="FOLDER",
        help="write BENCHMARKS.md and its pictures, of a GPU GPU-BENCHMARKS.md; default: docs",
    )
    other = result.add_argument_group("instead")
    other.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="print what changed between two records",
    )
    other.add_argument("--list-shapes", action="store_true", help="print the names of all shapes")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parse = parser()
    options = parse.parse_args(argv)
    on_cuda = options.device == "cuda"
    try:
        known = [case.shape for case in cuda_cases()] if on_cuda else NAMED
        if options.list_shapes:
            shapes = NAMED.values()
            texts = (f"{s.name:22} {s.use} ({', '.join(s.cells)})" for s in shapes)
            print("\n".join(dict.fromkeys(known) if on_cuda else texts))
            return 0
        unknown = [name for name in options.shapes if name not in known]
        if unknown:
            expected = ", ".join(dict.fromkeys(known))
            parse.error(f"argument --shapes: expected some of {expected}, got {unknown[0]!r}")
        if options.compare:
            print("\n".join(compare(*map(records.load, options.compare))))
            return 0
        if options.yardstick and not options.yardstick.is_file():
            parse.error(f"--yardstick: no file {options.yardstick}")
        if options.report and not options.report.is_dir():
            parse.error(f"--report: no folder {options.report}")
        if options.report and not on_cuda and not importlib.util.find_spec("matplotlib"):
            parse.error("--report: needs matplotlib, which is not installed")
        if not options.load and not options.out.absolute().parent.is_dir():
            parse.error(f"--out: no folder {options.out.absolute().parent}")
        if on_cuda:
            return cuda_main.main(options)
        record = records.load(options.load) if options.load else _measure(options)
    except (OSError, ValueError, cuda_main.NoDevice) as error:
        parse.error(str(error))
    if options.report:
        from bench import report  # needs matplotlib

        for path in report.write(record, options.report):
            print(f"wrote {path}", file=sys.stderr)
    verdicts, problems = floors.check(record) if options.check else ([], records.errors(record))
    for line in floors.describe(verdicts, problems):
        print(line)
    return 1 if problems or any(verdict.failures for verdict in verdicts) else 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, writes its record, and prints a table."""
    record = runs.run(
        runs.Options(
            options.preset,
            options.cells,
            options.shapes,
            options.threads,
            options.peers,
            str(options.yardstick.absolute()) if options.yardstick else None,
        )
    )
    records.save(record, options.out)
    printed = [section for section in records.SECTIONS if section != "scaling"]
    for row in chain.from_iterable(records.rows(record, section) for section in printed):
        ratios = ", ".join(f"{name} {ratio['median']:.2f}" for name, ratio in row.ratios.items())
        fraction = "" if row.fraction is None else f"  {row.fraction:.2f} of the bound"
        speedup = row.dropin_speedup
        dropin = "" if speedup is None else f"  {DROPIN} × torch {speedup['median']:.2f}"
        print(f"{row.case!s:42} {row.mode:9} {row.ours:12.1f} µs  × {ratios}{fraction}{dropin}")
    if records.disturbed(record):
        print(records.disturbed(record), file=sys.stderr)
    print(f"wrote {options.out} after {record['seconds']} s", file=sys.stderr)
    return record
