"""The command `python -m rnnfast demo`."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import rnnfast
from rnnfast import _backend
from rnnfast._low_precision import FORMATS
from rnnfast.demo.gradients import gradient_norms
from rnnfast.demo.model import CELLS, CharModel
from rnnfast.demo.plot import figure
from rnnfast.demo.text import Text, python_topics
from rnnfast.demo.training import Training, evaluate, train

INSTALL = 'pip install ".[demo]"'
# Optional packages, and the effect if one is missing.
WITHOUT = {
    "matplotlib": "No figure",
    "tqdm": "No progress bar",
    "threadpoolctl": "Slower on few cores, as BLAS keeps its threads",
}
PROMPT = "The "
SAMPLE = 300
# The comparison of the cells trains three more models; the first model's number of updates is
# divided by this.
COMPARED_PART = 10
# The held-out characters on which the precisions are compared; each takes a second in NumPy.
COMPARED_CHARACTERS = 10_000


def parser() -> argparse.ArgumentParser:
    """The parser for the arguments of the command."""
    made = argparse.ArgumentParser(
        prog="python -m rnnfast demo",
        description="Trains a character model on the English of Python's help(), prints text that "
        "it writes, and draws how its gradients vanish. Takes about 50 s.",
    )

    def add(name: str, default: object, meaning: str, **options: Any) -> None:
        made.add_argument(
            name, default=default, help=f"{meaning} (default: %(default)s)", **options
        )

    add("--cell", "lstm", "the kind of layer", choices=CELLS)
    add("--hidden", 192, "its hidden size", type=_count)
    add("--seconds", 40.0, "how long to train", type=_seconds)
    made.add_argument("--updates", type=_count, help="train for so many updates instead")
    add("--seed", 0, "of parameters and generated text", type=_seed)
    made.add_argument("--backend", choices=_backend.BACKENDS, help="instead of the best one")
    made.add_argument("--losses", type=_file, help="write each update's bits per character here")
    add("--output", "rnnfast-demo.png", "the figure", type=_file)
    made.add_argument("--no-plot", action="store_true", help="leave the figure out")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo with the arguments `argv` (None: those of the command line); returns 0."""
    arguments = parser()
    options = arguments.parse_args(argv)
    if options.backend:
        try:
            rnnfast.set_backend(options.backend)
        except RuntimeError as error:
            arguments.error(str(error))
    for package, loss in WITHOUT.items():
        if not _installed(package) and not (package == "matplotlib" and options.no_plot):
            how = f"in rnnfast's source folder {INSTALL} brings it"
            print(f"{loss}: {package} is not installed; {how}.")
    with _one_blas_thread():
        _run(options)
    return 0


def _run(options: argparse.Namespace) -> None:
    begin = time.perf_counter()
    text = python_topics()
    model = CharModel(options.cell, len(text.characters), options.hidden, options.seed)
    print(
        f"{model.layer} on the {_backend.current().name} backend: {text.train.size:,} characters "
        f"to train on, {text.held_out.size:,} held out"
    )
    with _bar(options.cell.upper()) as progress:
        done = train(
            model,
            text.train,
            seconds=options.seconds,
            updates=options.updates,
            progress=progress,
        )
    held_out = evaluate(model, text.held_out)
    if options.losses:
        np.savetxt(options.losses, done.losses, fmt="%.9g")
    written = model.sample(text.encode(PROMPT), SAMPLE, seed=options.seed)
    print(f"\n{_printable(PROMPT + text.decode(written))}\n")
    if not options.no_plot and _installed("matplotlib"):
        _compare_and_plot(options, text, done, held_out)
    part = text.held_out[:COMPARED_CHARACTERS]
    bits = {name: evaluate(model, part, weights=name) for name in ("float32", *FORMATS)}
    lost = ", ".join(f"{bits[name] - bits['float32']:+.4f} in {name}" for name in FORMATS)
    print(f"bits per character, against float32 weights: {lost}")
    print(
        f"held-out bits per character {held_out:.3f}   updates {len(done.losses):,}   "
        f"characters/s {done.speed:,.0f}   seconds {done.seconds:.1f} "
        f"(in all {time.perf_counter() - begin:.1f})"
    )


def _compare_and_plot(
    options: argparse.Namespace, text: Text, done: Training, held_out: float
) -> None:
    updates = math.ceil(len(done.losses) / COMPARED_PART)
    norms = {}
    for cell in CELLS:
        model = CharModel(cell, len(text.characters), options.hidden, options.seed)
        before = gradient_norms(model, text.held_out)
        with _bar(f"gradients of {cell.upper()}") as progress:
            train(model, text.train, updates=updates, progress=progress)
        norms[cell] = before, gradient_norms(model, text.held_out)
    figure(options.output, options.cell, options.hidden, done.losses, held_out, norms, updates)
    print(f"figure: {options.output}")


@contextmanager
def _bar(label: str) -> Iterator[Callable[[Training], None] | None]:
    """A function that shows the progress of a training; None if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc=label, bar_format=shape, mininterval=0.25, miniters=0) as bar:

        def show(done: Training) -> None:
            bar.set_postfix_str(
                f"{done.losses[-1]:.2f} bits per character, {done.speed:,.0f} characters/s",
                refresh=False,
            )
            bar.update(min(done.fraction, 1.0) - bar.n)

        yield show


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Keeps NumPy's products on one thread, if threadpoolctl is installed.

    The products are small here. After each one, OpenBLAS's threads spin on the cores that rnnfast's
    threads need: on two cores the training takes about three times as long with them.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _printable(text: str) -> str:
    """`text`, in which "?" replaces the characters that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _count(value: str) -> int:
    if not value.isdecimal() or not int(value):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {value!r}")
    return int(value)


def _seed(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or above, got {value!r}")
    return int(value)


def _seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {value!r}")
    return number


def _file(value: str) -> Path:
    path = Path(value)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {value!r}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file that can be written, got {value!r}")
    return path
