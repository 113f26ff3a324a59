"""The cases to time: all shapes, and the presets that select some of them.

Letters: T steps, B batch, I input size, H hidden size, L layers, D directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

CELLS = ("rnn", "gru", "lstm")
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
MODES = ("inference", "training")
SHORTEST = "1-1-64-64"  # the shape that shows the cost of a call itself


@dataclass(frozen=True)
class Shape:
    """One size of problem.

    name : a unique name without spaces.
    use : the kind of work that the shape represents.
    ragged : whether every sequence has its own length, uniform in 1..T.
    cells : the cells with which the shape is timed.
    """

    name: str
    use: str
    T: int
    B: int
    I: int  # noqa: E741 - the letter of the papers
    H: int
    L: int = 1
    D: int = 1
    ragged: bool = False
    cells: tuple[str, ...] = CELLS

    @property
    def inputs(self) -> list[int]:
        """The input size of each of the L layers."""
        return [self.I] + [self.D * self.H] * (self.L - 1)

    def flops(self, cell: str) -> float:
        """The multiplications and additions of a forward pass in which all lengths are T."""
        width = GATES[cell] * self.H
        return sum(2.0 * self.T * self.B * self.D * width * (size + self.H) for size in self.inputs)


@dataclass(frozen=True)
class Case:
    """A layer to time: its cell, shape and dtype, and the number of threads."""

    cell: str
    shape: Shape
    dtype: str = "float32"
    threads: int = 1

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Case:
        """The inverse of `asdict`, also after a way through JSON."""
        shape = {**fields["shape"], "cells": tuple(fields["shape"]["cells"])}
        return cls(**{**fields, "shape": Shape(**shape)})

    def __str__(self) -> str:
        """The text that stands for the case in progress and errors."""
        return f"{self.cell} {self.shape.name} {self.dtype} threads={self.threads}"


def _shape(
    use: str,
    T: int,
    B: int,
    I: int,  # noqa: E741
    H: int,
    suffix: str = "",
    **options,
) -> Shape:
    return Shape(
        f"{T}-{B}-{I}-{H}{suffix}",
        use,
        T,
        B,
        I,
        H,
        **options,
    )


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        _shape("streaming audio", 1, 1, 64, 64),
        _shape("streaming audio", 1, 1, 256, 256),
        _shape("streaming audio", 1, 1, 1024, 1024),
        _shape("one sequence", 100, 1, 64, 64),
        _shape("one sequence", 100, 1, 128, 128),
        _shape("one sequence", 100, 1, 256, 256),
        _shape("one sequence", 100, 1, 512, 512),
        _shape("one sequence", 50, 1, 1024, 1024),
        _shape("guitar amplifier", 2048, 1, 1, 40),
        _shape("reinforcement learning", 64, 16, 64, 128),
        _shape("reinforcement learning", 16, 128, 64, 256),
        _shape("speech, 2 layers, both directions", 200, 8, 80, 320, L=2, D=2),
        _shape("speech", 100, 32, 256, 256),
        _shape("hydrology", 365, 256, 32, 64),
        _shape("hydrology", 365, 64, 32, 256),
        _shape("translation", 50, 32, 512, 512),
        _shape("translation", 25, 64, 1024, 1024),
        _shape("DeepBench", 50, 16, 1760, 1760, cells=("rnn",)),
        _shape("DeepBench", 100, 32, 1024, 1024, cells=("gru",)),
        _shape("DeepBench", 150, 16, 256, 256, cells=("lstm",)),
        _shape("odd sizes", 33, 5, 17, 45),
        _shape("ragged", 200, 32, 256, 256, "-ragged", ragged=True),
    )
}

# Other ways to use torch's modules. Each is a section of a record: a loop in Python that calls a
# cell, or a layer, for each of T steps; a layer that takes and returns a PackedSequence; and a
# layer in a model, between two of torch's linear layers.
CELL_LOOPS, LAYER_LOOPS, PACKED, IN_MODELS = "cell_loops", "layer_loops", "packed", "in_models"
WAYS: dict[str, dict[str, Shape]] = {
    section: {shape.name: shape for shape in shapes}
    for section, shapes in (
        (
            CELL_LOOPS,
            (
                _shape("loop of cells", 100, 1, 64, 64, "-cells"),
                _shape("loop of cells", 100, 16, 64, 64, "-cells"),
                _shape("loop of cells", 100, 1, 256, 256, "-cells"),
                _shape("loop of cells", 100, 16, 256, 256, "-cells"),
            ),
        ),
        (
            LAYER_LOOPS,
            (
                _shape("loop of a layer", 50, 1, 64, 64, "-steps"),
                _shape("loop of a layer", 50, 16, 256, 256, "-steps"),
                _shape("loop of two layers", 50, 16, 256, 256, "-2-steps", L=2),
                _shape("loop of a layer", 50, 32, 512, 512, "-steps"),
            ),
        ),
        (PACKED, (_shape("packed", 200, 32, 256, 256, "-packed", ragged=True),)),
        (
            IN_MODELS,
            (
                _shape("in a model", 64, 16, 128, 128, "-model"),
                _shape("in a model", 100, 32, 256, 256, "-model"),
                _shape(
                    "in a model, 2 layers, both directions", 40, 32, 128, 128, "-2-model", L=2, D=2
                ),
            ),
        ),
    )
}
# Steps of streams: the name of the section of a record, and of the mode. T steps are timed in a
# row. T is so small that inputs and outputs leave most of the L2 cache to the weights.
STREAMS, STEP = "streams", "step"
STREAM_SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(f"1-1-{inputs}-{hidden}-stream", "stream", steps, 1, inputs, hidden)
        for steps, inputs, hidden in (
            (1000, 1, 16),
            (1000, 1, 32),
            (500, 1, 64),
            (256, 64, 64),
            (128, 128, 128),
            (64, 256, 256),
            (32, 512, 512),
        )
    )
}

# The section for sequences in low precision.
PRECISION = "precision"
PRECISION_SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        _shape("speech", 100, 32, 256, 256, "-low", cells=("gru", "lstm")),
        _shape("translation", 25, 64, 1024, 1024, "-low", cells=("gru", "lstm")),
        _shape("hydrology", 365, 256, 32, 64, "-low", cells=("gru", "lstm")),
    )
}

# The section for Numba, which stands in if there is no compiled module.
FALLBACK = "fallback"
FALLBACK_SHAPES: dict[str, Shape] = {
    shape.name: shape for shape in (_shape("without the module", 100, 8, 128, 128, "-fallback"),)
}

# All shapes that the option --shapes accepts.
NAMED = {
    **SHAPES,
    **{name: shape for shapes in WAYS.values() for name, shape in shapes.items()},
    **STREAM_SHAPES,
    **PRECISION_SHAPES,
    **FALLBACK_SHAPES,
}


@dataclass(frozen=True)
class Preset:
    """The measurements that a run makes.

    seconds : the timing of each contender in each mode of a case.
    shapes : the names of `SHAPES` to time in float32.
    double : the names of those to time in float64 as well.
    memory : the names of those whose peak memory is measured.
    scaling : the values of T, B and H to sweep, starting from `SCALING_BASE`.
    slow_peers : the names of the shapes for which slow peers, compiled for each case, take part.
    ways : whether the shapes of `WAYS` are measured, too.
    streams : the names of `STREAM_SHAPES` to time.
    precision : whether `PRECISION_SHAPES`, the latency of single steps and the demo's bits per
        character are measured, too.
    fallback : whether `FALLBACK_SHAPES` are measured, too.
    peers : the names of the peers that take part; empty: all.
    shared : whether the cells of a shape share a process. Then no bound is measured, and of ours
        only the baseline is timed.
    """

    seconds: float
    shapes: tuple[str, ...]
    double: tuple[str, ...]
    memory: tuple[str, ...]
    scaling: dict[str, tuple[int, ...]]
    slow_peers: tuple[str, ...]
    ways: bool = False
    streams: tuple[str, ...] = ()
    precision: bool = False
    fallback: bool = False
    peers: tuple[str, ...] = ()
    shared: bool = False


SCALING_BASE = Shape("base", "scaling", T=100, B=8, I=128, H=128)

# The least T*B*H*L*D for which memory is measured. A training step then takes some megabytes;
# below, a page more or less would make the difference.
MEMORY_FROM = 500_000

PRESETS = {
    "quick": Preset(
        seconds=0.15,
        shapes=("1-1-64-64", "100-1-128-128", "64-16-64-128", "33-5-17-45"),
        double=(),
        memory=(),
        scaling={},
        slow_peers=(),
        streams=("1-1-64-64-stream", "1-1-256-256-stream"),
    ),
    "full": Preset(
        seconds=0.3,
        shapes=tuple(SHAPES),
        double=("100-1-128-128", "64-16-64-128", "100-32-256-256"),
        memory=tuple(n for n, s in SHAPES.items() if s.T * s.B * s.H * s.L * s.D >= MEMORY_FROM),
        scaling={
            "T": (4, 16, 64, 256, 1024),
            "B": (1, 4, 16, 64, 256),
            "H": (16, 32, 64, 128, 256, 512, 1024),
        },
        slow_peers=(
            "100-1-128-128",
            "2048-1-1-40",
            "64-16-64-128",
            "100-32-256-256",
            "365-256-32-64",
            "33-5-17-45",
        ),
        ways=True,
        streams=tuple(STREAM_SHAPES),
        precision=True,
        fallback=True,
    ),
    "streams": Preset(
        seconds=0.3,
        shapes=(),
        double=(),
        memory=(),
        scaling={},
        slow_peers=(),
        streams=tuple(STREAM_SHAPES),
        precision=True,
    ),
    "torch": Preset(
        seconds=0.15,
        shapes=tuple(SHAPES),
        double=(),
        memory=(),
        scaling={},
        slow_peers=(),
        ways=True,
        peers=("ours", "torch", "rnnfast.torch"),
        shared=True,
    ),
}


def scaling_shapes(axis: str, values: tuple[int, ...]) -> list[Shape]:
    """`SCALING_BASE` with each value of the letter `axis`; for H, I takes the same value."""
    both = ("I", "H") if axis == "H" else (axis,)
    return [
        replace(SCALING_BASE, name=f"{axis}={value}", **dict.fromkeys(both, value))
        for value in values
    ]
