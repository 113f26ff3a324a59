"""What only the Numba backend has: machine code on disk, floating-point environment, products."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from subprocesses import python
from tolerances import assert_close

import rnnfast
from rnnfast import _backend, functional

pytest.importorskip("numba")

_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def test_machine_code_on_disk_is_that_of_all_sources(tmp_path):
    """A change to a file that no entry point is in makes all of it anew, and nothing else does."""
    package = tmp_path / "rnnfast"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    shutil.copytree(Path(rnnfast.__file__).parent, package, ignore=ignored)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from rnnfast._numba import environment
assert environment.__file__.startswith({str(tmp_path)!r})
with environment.denormals_are_zero():
    pass
"""
    cache = tmp_path / "cache"

    def run() -> dict[str, int]:
        """When each function was kept."""
        done = python(code, RNNFAST_BACKEND="numba", NUMBA_CACHE_DIR=str(cache))
        assert done.returncode == 0, done.stderr
        return {path.name: path.stat().st_mtime_ns for path in cache.rglob("*.nbi")}

    first = run()
    assert len(first) == 2
    assert run() == first
    other = package / "_numba" / "sequence.py"
    other.write_text(other.read_text() + "# changed\n")
    second = run()
    assert len(second) == 4 and first.items() < second.items()


def test_the_environment_on_aarch64(monkeypatch):
    """The status flags are kept too: by the instructions, as this machine may be another."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    from rnnfast._numba import environment

    monkeypatch.setattr(environment, "_IS_X86", False)
    monkeypatch.setattr(environment, "_IS_ARM", True)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    word, module = ir.IntType(64), ir.Module()
    function = ir.Function(module, ir.FunctionType(word, [word]), "exchange")
    builder = ir.IRBuilder(function.append_basic_block())
    (_, read), (_, write) = environment._read._defn(None), environment._write._defn(None, None)
    before = read(None, builder, None, ())
    write(Mock(), builder, None, function.args)
    builder.ret(before)
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine()
    text = target.emit_assembly(llvm.parse_assembly(str(module))).lower()
    for instruction in (r"mrs\s+x\d+, fpcr", r"mrs\s+x\d+, fpsr", r"msr\s+fpcr,", r"msr\s+fpsr,"):
        assert len(re.findall(instruction, text)) == 1, text


@pytest.mark.parametrize(
    ("cpu", "features", "width"),
    [("generic", "", 16), ("haswell", "+avx,+avx2,+fma", 32), (None, None, None)],
)
def test_products_on_a_cpu(cpu, features, width):
    """Every height of a tile, in both dtypes, writes its rows and columns and no other."""
    import llvmlite.binding as llvm

    if cpu == "haswell" and not (_IS_X86 and llvm.get_host_cpu_features().get("avx2")):
        pytest.skip("this CPU cannot run code for a Haswell")
    code = f"""
import numpy as np
from rnnfast._numba.layout import panels
from rnnfast._numba.sequence import _product
from rnnfast._numba.tile import tile_shape
from numba.core.registry import cpu_target
triple, _, features = cpu_target.target_context.codegen().magic_tuple()
assert {width} in (None, tile_shape(triple, features, itemsize=1)[0] // 2)
rng = np.random.default_rng(0)
for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-15)):
    for n in range(1, 16):
        a, weights, out = (
            rng.standard_normal(shape).astype(dtype) for shape in ((17, 96), (64, 96), (18, 160))
        )
        want = out.copy()
        want[2 : 2 + n, 32:128] += a[1 : 1 + n, 32:] @ weights
        same = np.ones(out.shape, bool)
        same[2 : 2 + n, 32:128] = False
        _product(a, 1, 32, n, 64, panels(weights), out, 2, 32, 96)
        assert (out == want)[same].all(), n
        assert np.linalg.norm(out - want) <= tolerance * np.linalg.norm(want), (dtype, n)
"""
    done = python(code, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features)
    assert done.returncode == 0, done.stderr


def test_tiles_of_two_registers():
    from rnnfast._numba.tile import tile_shape

    assert tile_shape("x86_64-pc-linux-gnu", "+avx2,+avx512f", 4) == (32, (8, 4, 2, 1))
    assert tile_shape("x86_64-pc-linux-gnu", "+avx2,-avx512f", 4) == (16, (6, 4, 2, 1))
    assert tile_shape("aarch64-unknown-linux-gnu", "+neon", 4) == (8, (8, 4, 2, 1))


@pytest.mark.parametrize("rows", [1, 4, 5, 9])
def test_few_rows_and_many_add_the_same_gradients(rows):
    from rnnfast._numba.gradients import add_product

    rng = np.random.default_rng(rows)
    da, operand, target = (rng.standard_normal(shape) for shape in ((rows, 8), (rows, 5), (3, 5)))
    columns = np.array([6, 0, 3])
    want = target + da[:, columns].T @ operand
    add_product(target, da, columns, operand)
    assert_close(target, want, 1e-14)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [7, 2, 0]])
def test_chunks_of_a_few_steps(reverse, lengths, monkeypatch):
    """States and gradients go from chunk to chunk, and no number stays in a chunk's memory."""
    import rnnfast._numba as backend

    rng = np.random.default_rng(0)
    sizes = {"weight_ih": (15, 4), "weight_hh": (15, 5), "bias_ih": 15, "bias_hh": 15}
    weights = {name: rng.standard_normal(shape) for name, shape in sizes.items()}
    x, dy = rng.standard_normal((7, 3, 4)), rng.standard_normal((7, 3, 5))
    monkeypatch.setattr(_backend, "_current", backend.load())
    results = []
    for limits in ({}, {"_FORWARD_CHUNK": 800, "_BACKWARD_CHUNK": 0, "_BACKWARD_ROWS": 7}):
        for name, limit in limits.items():
            monkeypatch.setattr(backend, name, limit)
        for cell in ("gru", "gru_reset_before"):
            packed = functional.pack(cell, **weights)
            run = functional.forward(packed, x, lengths=lengths, reverse=reverse, training=True)
            grads = run.backward(dy)
            arrays = [run.y, run.h, grads.x, grads.h0, *grads.weights[:4]]
            results.append(np.concatenate([array.ravel() for array in arrays]))
    whole, chunks = results[:2], results[2:]
    for got, want in zip(chunks, whole, strict=True):
        assert_close(got, want, 1e-14)


def test_packed_weights_stay_good_when_the_backend_is_chosen_again():
    assert _backend.load("numba") is _backend.load("numba")
