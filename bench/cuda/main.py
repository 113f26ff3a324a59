"""The part of the command line that is for a device."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bench import floors as host_floors
from bench import records
from bench.cuda import device, floors, report
from bench.cuda.cases import OURS
from bench.cuda.device import NoDevice

__all__ = ["NoDevice", "main", "measure"]


def main(options: argparse.Namespace) -> int:
    """Runs the benchmark, or loads a record; returns the exit status.

    Raises
    ------
    NoDevice : there is no device to measure.
    OSError, ValueError : the record cannot be read or written.
    """
    record = records.load(options.load, "cuda") if options.load else measure(options)
    if options.report:
        print(f"wrote {report.write(record, options.report)}", file=sys.stderr)
    verdicts, problems = floors.check(record) if options.check else ([], floors.errors(record))
    for line in host_floors.describe(verdicts, problems):
        print(line)
    return 1 if problems or any(verdict.failures for verdict in verdicts) else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, writes its record, and prints a table."""
    found = device.find()
    from bench.cuda import runs  # needs torch

    record = runs.run(runs.Options(options.cells, options.shapes), found)
    records.save(record, options.out)
    for case, entry in report.entries(record):
        times, ratios = entry["times_us"], entry["ratios"]
        ours = f"{times[OURS]['median']:12.1f} µs" if OURS in times else "not timed"
        over = ", ".join(f"{name} {ratio['median']:.2f}" for name, ratio in ratios.items())
        print(f"{case!s:32} {entry['mode']:9} {ours}  × {over}")
    print(f"wrote {options.out} after {record['seconds']} s", file=sys.stderr)
    return record
