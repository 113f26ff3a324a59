"""What only the Numba backend has: machine code on disk, and its floating-point environment."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from subprocesses import python

import rnnfast

pytest.importorskip("numba")


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
