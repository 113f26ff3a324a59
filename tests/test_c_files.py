"""`rnnfast_open`: a saved layer is the same stream in C, and the same files are refused."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from c_programs import library_flags
from files import MODULES, joined, mutated, saved, split
from oracle import assert_same_bits, make, normal

import rnnfast
from rnnfast._low_precision import FORMATS

STEPS, BATCH = 5, 3


class Config(ctypes.Structure):
    _fields_ = [(name, ctypes.c_char_p) for name in ("cell", "dtype", "weights")] + [
        (name, ctypes.c_int64)
        for name in ("input_size", "hidden_size", "proj_size", "num_layers", "batch_size")
    ]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    folder = next(flag[2:] for flag in library_flags("libs") if flag.startswith("-L"))
    names = (path for path in Path(folder).iterdir() if path.name.startswith("librnnfast."))
    library = ctypes.CDLL(str(next(names)))
    library.rnnfast_open.restype = ctypes.c_void_p
    library.rnnfast_error.restype = ctypes.c_char_p
    pointer = ctypes.c_void_p
    library.rnnfast_run.argtypes = [pointer, ctypes.c_int64, pointer, pointer]
    library.rnnfast_destroy.argtypes = [pointer]
    return library


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.safetensors"


@pytest.fixture
def opened(library, path):
    """Opens the file: the stream, which is destroyed after the test, and its configuration."""
    streams = []

    def open_file() -> tuple[int | None, Config]:
        config = Config(batch_size=BATCH)
        streams.append(library.rnnfast_open(os.fsencode(path), ctypes.byref(config)))
        return streams[-1], config

    yield open_file
    for stream in streams:
        library.rnnfast_destroy(stream)


Opened = Callable[[], tuple[int | None, Config]]
one_way = [k for k, (_, options) in MODULES.items() if not options.get("bidirectional")]


@pytest.mark.parametrize("kind", one_way)
def test_steps_are_the_layers(native, library, path, opened: Opened, kind, dtype, rng):
    constructor, options = MODULES[kind]
    module = constructor(4, 5, dtype=dtype, seed=3, **options)
    module.save(path)
    x = normal(rng, (STEPS, BATCH, 4), dtype)
    if hasattr(module, "stream"):
        want = module.stream(BATCH).run(x)
    else:
        state, rows = None, []
        for row in x:
            state = module(row, state)
            rows.append(state[0] if isinstance(state, tuple) else state)
        want = np.stack(rows)
    stream, config = opened()
    assert stream, library.rnnfast_error()
    sizes = module._signature.sizes
    got = (config.input_size, config.hidden_size, config.proj_size)
    assert got == sizes and config.num_layers == options.get("num_layers", 1)
    assert config.cell.decode() == module._signature.cell.name and config.dtype.decode() == dtype
    output = np.empty((STEPS, BATCH, sizes.output), dtype)
    library.rnnfast_run(stream, STEPS, x.ctypes.data, output.ctypes.data)
    assert_same_bits(output, want)


@pytest.mark.parametrize("precision", FORMATS)
def test_a_stream_is_in_the_precision_that_is_asked_for(native, library, path, precision, rng):
    """By a name; without one, in that of the layer, which the configuration tells."""
    x, output = normal(rng, (STEPS, BATCH, 4), "f4"), np.empty((STEPS, BATCH, 5), "f4")
    layer = make("gru", num_layers=2, precision=precision)
    layer.save(path)
    for weights in (None, "float32", *FORMATS):
        config = Config(batch_size=BATCH, weights=weights and weights.encode())
        stream = library.rnnfast_open(os.fsencode(path), ctypes.byref(config))
        assert stream, library.rnnfast_error()
        library.rnnfast_run(stream, STEPS, x.ctypes.data, output.ctypes.data)
        library.rnnfast_destroy(stream)
        assert config.weights.decode() == (weights or precision)
        assert_same_bits(output, layer.stream(BATCH, weights).run(x), str(weights))


def test_two_directions_are_refused(library, path, opened: Opened):
    make("gru", bidirectional=True).save(path)
    assert opened()[0] is None
    want = f"{path}: bidirectional: expected false for a stream, got true"
    assert library.rnnfast_error().decode() == want


@pytest.mark.parametrize("text", ["A\nB", "A\0B", "é", "x" * 100_000])
@pytest.mark.parametrize("option", ["class", "format", "dtype", "precision", "hidden_size"])
def test_an_error_is_one_line_whatever_is_in_the_file(library, path, opened: Opened, option, text):
    header, data = split(saved(make("gru", precision="int8"), path.parent))
    header["__metadata__"][option] = text
    path.write_bytes(joined(header, data))
    assert opened()[0] is None
    error = library.rnnfast_error()
    assert error.startswith(os.fsencode(path)) and len(error) < 512
    assert all(b" "[0] <= byte <= b"~"[0] for byte in error), error


def test_an_error_is_one_line_and_has_its_reason_whatever_the_path(library):
    config = Config(batch_size=BATCH)
    reason = b": No such file or directory"
    for path, want in {
        b"no\nsuch\x7f": b"no?such?" + reason,
        b"/" * 200 + b"no/" * 200: b"/" * 200 + b"..." + (b"no/" * 200 + reason)[-308:],
    }.items():
        assert library.rnnfast_open(path, ctypes.byref(config)) is None
        assert library.rnnfast_error() == want


def test_more_options_than_any_layer_has(library, path, opened: Opened):
    header, data = split(saved(make("gru"), path.parent))
    header["__metadata__"] |= {f"{k}": "" for k in range(64)}
    path.write_bytes(joined(header, data))
    assert opened()[0] is None
    assert b"metadata: expected at most 64 strings, got more" in library.rnnfast_error()
    with pytest.raises(ValueError, match="metadata: expected at most 64 strings, got more"):
        rnnfast.load(path)


def test_a_device_is_no_file(library):
    config = Config(batch_size=BATCH)
    assert library.rnnfast_open(b"/dev/zero", ctypes.byref(config)) is None
    assert library.rnnfast_error() == b"/dev/zero: file: expected a size, got none"


@pytest.mark.parametrize("kind", one_way)
def test_python_and_c_refuse_the_same_files(library, path, opened: Opened, kind):
    """But for what a stream has no use for, dropout."""
    constructor, options = MODULES[kind]
    content = saved(constructor(4, 5, seed=3, precision="int8", **options), path.parent)
    other = saved(make("gru", dtype="float64"), path.parent)
    rng = np.random.default_rng([6, list(MODULES).index(kind)])
    for _ in range(500):
        path.write_bytes(mutated(rng, content, other))
        try:
            rnnfast.load(path)
            refused = ""
        except ValueError as error:
            refused = str(error)
        stream, _ = opened()
        error = "" if stream else library.rnnfast_error().decode("latin-1")
        if "dropout" not in refused and "bidirectional" not in error:
            assert bool(error) == bool(refused), (refused, error)
