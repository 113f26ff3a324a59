"""A record of the benchmark's full preset, for tests of what is made of one.

Import it after `bench` is known to be there.
"""

from __future__ import annotations

from dataclasses import asdict

import low_records
from low_records import spread

from bench import machine, memory, peers, records, roofline, runs
from bench.shapes import (
    CELLS,
    FALLBACK,
    FALLBACK_SHAPES,
    MODES,
    SHAPES,
    WAYS,
    Case,
    scaling_shapes,
)

DROPIN_COST = 5.0  # µs


def entry(case, mode, ratio=5.0):
    ours = 100.0
    others = ["torch", "onnxruntime", peers.YARDSTICK]
    if case.threads == 2:
        others.append(peers.ONE_THREAD)
    times = {name: spread(ours * ratio) for name in others}
    return {
        "case": asdict(case),
        "mode": mode,
        "times_us": {"ours": spread(ours), peers.DROPIN: spread(ours + DROPIN_COST), **times},
        "ratios": {peers.DROPIN: spread(0.5), **{name: spread(ratio) for name in others}},
        "dropin_speedup": spread(12.0),
        "disturbed": 0.0,
        "skipped": {},
        "errors": {},
        "bound_us": 0.95 * ours,
    }


def make():
    """A record in which every floor holds."""
    cases = [
        Case(cell, shape, threads=threads)
        for shape in SHAPES.values()
        for cell in shape.cells
        for threads in (1, 2)
    ]
    by_way = {
        way: [
            entry(Case(cell, shape, threads=threads), "training")
            for shape in shapes.values()
            for cell in CELLS
            for threads in (1, 2)
        ]
        for way, shapes in WAYS.items()
    }
    big = asdict(Case("gru", SHAPES["100-32-256-256"]))
    swept = [Case("gru", shape) for shape in scaling_shapes("T", (4, 16, 64))]
    parts = {
        "results": [entry(case, mode) for case in cases for mode in MODES],
        **by_way,
        "memory": [
            {"case": big, "contender": contender, "mib": mib}
            for contender, mib in zip(memory.CONTENDERS, (30.0, 15.0, 60.0), strict=True)
        ],
        FALLBACK: [
            low_records.row(Case(cell, shape), mode, {"ours": 1.0, peers.NUMBA: 3.0, "torch": 4.0})
            for shape in FALLBACK_SHAPES.values()
            for cell in CELLS
            for mode in MODES
        ],
        "scaling": [entry(case, mode) for case in swept for mode in MODES],
        "levels": {"float32": {"peak": 100.0, **dict.fromkeys(roofline.LEVELS, 50.0)}},
        **low_records.sections(),
    }
    return {
        "format": records.FORMAT,
        "date": "2000-01-01T00:00:00+00:00",
        "commit": None,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": asdict(runs.Options()),
        "missing": {},
        "errors": [],
        "seconds": 1,
        **parts,
    }


def find(record, cell, shape, mode, threads=1, section="results"):
    keys = [row.key for row in records.rows(record, section)]
    return record[section][keys.index((cell, shape, "float32", mode, threads))]
