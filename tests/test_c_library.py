"""librnnfast from C: the bits of the layers, and steps that a real-time thread can take."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from c_programs import (
    TESTS,
    compile_program,
    find_tool,
    header_functions,
    library_flags,
    run,
)
from oracle import KINDS, assert_same_bits, make, normal, parts
from subprocesses import python

import rnnfast
from rnnfast._cells import CELLS, DTYPES
from rnnfast._low_precision import FORMATS

STEPS, LAYERS = 9, 2
SIZES = [(1, 16), (5, 5), (17, 33)]  # I and H
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF, and forbids system calls")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("c")
    return compile_program(TESTS / "stream_program.c", folder / "stream_program")


@pytest.fixture(scope="module")
def library() -> Path:
    """The shared library."""
    lib = next(flag[2:] for flag in library_flags("libs") if flag.startswith("-L"))
    return next(path for path in Path(lib).iterdir() if path.name.startswith("librnnfast."))


@pytest.fixture(scope="module")
def header() -> str:
    (flag,) = library_flags("cflags")
    return Path(flag.removeprefix("-I"), "rnnfast.h").read_text()


def step_in_c(
    program: Path, layer, x, *violation: str, weights: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The program's `steps` with the layer's weights, kept as `weights`, over x (T, B, I)."""
    cell, sizes, dtype = layer._signature.cell, layer._signature.sizes, layer.dtype
    steps, batch, _ = x.shape
    numbers = map(str, (*sizes, LAYERS, batch, steps))
    arrays = [*layer.parameters.values(), x]
    return subprocess.run(
        [program, "steps", cell.name, dtype, weights or dtype, *numbers, *violation],
        input=b"".join(np.ascontiguousarray(a).tobytes() for a in arrays),
        capture_output=True,
        timeout=60,
    )


def check(program: Path, kind: str, dtype: str, batch: int) -> None:
    """Steps in C against the layer, from zero states."""
    for input_size, hidden in SIZES:
        layer = make(kind, input_size, hidden, num_layers=LAYERS, dtype=dtype)
        x = normal(np.random.default_rng(hidden), (STEPS, batch, input_size), dtype)
        output, state = layer(x)
        done = step_in_c(program, layer, x)
        assert done.returncode == 0, (done.returncode, done.stderr)
        got = np.frombuffer(done.stdout, dtype)
        want = np.concatenate([output.ravel(), *(s.ravel() for s in parts(state))])
        assert_same_bits(got, want)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_layer_s(native, program, kind, dtype, batch):
    """Also: none of it allocates, locks or, on Linux, makes a system call."""
    check(program, kind, dtype, batch)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_in_low_precision_are_the_stream_s(native, program, kind, weights):
    layer = make(kind, 5, 33, num_layers=LAYERS)
    x = normal(np.random.default_rng(0), (STEPS, 3, 5), "float32")
    stream = layer.stream(3, weights)
    output = stream.run(x)
    done = step_in_c(program, layer, x, weights=weights)
    assert done.returncode == 0, (done.returncode, done.stderr)
    want = np.concatenate([output.ravel(), *(s.ravel() for s in parts(stream.state))])
    assert_same_bits(np.frombuffer(done.stdout, "float32"), want)


def check_all(program: str) -> None:
    """For a process with an ISA forced, which the program takes too."""
    for kind in KINDS:
        for dtype in DTYPES:
            check(Path(program), kind, dtype, 3)


def test_steps_are_the_layer_s_on_every_isa(native, program):
    path = [str(TESTS), *sys.path]
    code = f"import sys; sys.path[:0] = {path!r}\nimport test_c_library as t\n"
    for isa in native.supported_isas():
        done = python(
            f"{code}t.check_all({str(program)!r})", RNNFAST_ISA=isa, RNNFAST_BACKEND="native"
        )
        assert done.returncode == 0, f"{isa}: {done.stderr}"


@linux
@pytest.mark.parametrize(
    ("violation", "status"), [("allocate", 3), ("lock", 3), ("call", -signal.SIGKILL)]
)
def test_what_a_step_must_not_do_shows(program, violation, status):
    layer = make("lstm", num_layers=LAYERS)
    x = np.ones((STEPS, 1, 4), "float32")
    assert step_in_c(program, layer, x).returncode == 0
    assert step_in_c(program, layer, x, violation).returncode == status


def test_errors_say_what_is_wrong(program, monkeypatch):
    names = ", ".join(CELLS)
    assert run(program, "errors").stdout.splitlines() == [
        "",  # none yet
        f"cell: expected one of {names}, got lstn",
        "hidden_size: expected 1 or more, got 0",
        "weight_hh of layer 0: expected an array, got NULL",
        "config: expected a configuration, got NULL",
    ]
    monkeypatch.setenv("RNNFAST_ISA", "z80")
    isa = run(program, "errors").stdout.splitlines()[-1]
    assert isa.startswith("RNNFAST_ISA=z80: not compiled in (compiled in: ")


def test_streams_of_several_threads(program):
    run(program, "threads")


def test_the_header_is_c_and_cpp(tmp_path):
    flags = library_flags("cflags")
    for suffix, compiler, standard in (("c", "cc", "c99"), ("cpp", "c++", "c++98")):
        source = tmp_path / f"header.{suffix}"
        source.write_text("#include <rnnfast.h>\n#include <rnnfast.h>\n")
        strict = [f"-std={standard}", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]
        run(find_tool(compiler), *strict, "-Wno-long-long", *flags, source)


@linux
def test_only_the_header_s_functions_are_exported(library, header):
    listing = run(find_tool("nm"), "-D", "--defined-only", library).stdout
    functions = header_functions(header)
    assert len(functions) > 10
    by_version: dict[str, set[str]] = {}
    for kind, name, version in re.findall(r"^[0-9a-f]+ (\w) (\w+)@@(\w+?)_[\d.]+$", listing, re.M):
        assert kind == "T", name
        by_version.setdefault(version, set()).add(name)
    # The kernels, for the Python module of the same build.
    assert by_version == {"RNNFAST": functions, "RNNFAST_PRIVATE": {"librnnfast_kernels"}}
    others = [line for line in listing.splitlines() if "@@" not in line and " A " not in line]
    assert others == []


@linux
def test_a_c_program_needs_no_cpp_library(library):
    needed = re.findall(r"NEEDED.*\[(.*)\]", run(find_tool("readelf"), "-d", library).stdout)
    allowed = ("libc.", "libm.", "libpthread.", "ld-linux")
    assert needed and not [name for name in needed if not name.startswith(allowed)]


def declarations(text: str, struct: str) -> list[str]:
    """The fields of a struct in C or Cython, as "type name"."""
    body = re.search(rf"struct {struct}\b\s*[{{:](.*?)(?:\n}}|\n\n)", text, re.S)
    lines = re.findall(r"^ +((?:const )?\w+\*? \w+)", body[1], re.M)
    assert lines
    return lines


def test_the_pxd_is_the_header(header):
    pxd = Path(rnnfast.__file__).with_name("c.pxd").read_text()
    in_pxd = set(re.findall(r"^    \S.* \**(rnnfast_\w+)\(.*\)$", pxd, re.M))
    assert in_pxd == header_functions(header)
    for struct in ("rnnfast_config", "rnnfast_layer"):
        assert declarations(pxd, struct) == declarations(header, struct)
