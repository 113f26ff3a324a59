"""Records of `python -m bench --device cuda`, and the device that is emulated for them."""

from __future__ import annotations

import time

from bench import records
from bench.cuda import device
from bench.cuda.cases import CUDNN, FLASHRNN, OURS
from bench.shapes import CELLS

LATENCIES = {
    "processors": 132,
    "grid_sync": 1100.4,
    "l2_exchange": 900.0,
    "cluster": 16,
    "cluster_sync": 480.0,
    "ring": 190.0,
}


class Emulated(device.Device):
    """The host, in whose memory the emulated device's lies."""

    where = "cpu"

    def time_block(self, run, calls):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    def describe(self):
        return {
            "kind": "cuda",
            "name": "Emulated",
            "capability": "9.0",
            "processors": 4,
            "memory_gib": 1,
            "driver": None,
        }

    def versions(self):
        return {"cuda": "none"}


def entry(case, mode, ratio, ours=1000.0, absent=None):
    """As a run writes it."""
    spread = {"median": 1.0, "q1": 1.0, "q3": 1.0}
    return {
        "case": vars(case),
        "mode": mode,
        "times_us": {OURS: {**spread, "median": ours}, CUDNN: spread},
        "ratios": {CUDNN: {**spread, "median": ratio}},
        "errors": {},
        "absent": absent or {},
    }


def record_of(results, name="NVIDIA H200", shapes=("64-1-64",), **changed):
    return {
        "format": records.FORMAT,
        "device": {**Emulated().describe(), "name": name},
        "date": "2026-01-02T03:04:05",
        "commit": "abc",
        "versions": {"torch": "2.13.0"},
        "options": {"cells": CELLS, "shapes": shapes},
        "latencies_ns": LATENCIES,
        "results": results,
        "errors": [],
        "absent": {FLASHRNN: "not installed"},
        **changed,
    }
