"""Treats denormals as zero on the calling thread for the duration of a call.

Gradients that decay over hundreds of steps become denormal, and arithmetic with denormals takes
some twenty times as long.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnfast._numba.compiling import entry

_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
_IS_ARM = platform.machine().lower() in ("aarch64", "arm64")
# x86-64: the bits flush-to-zero and denormals-are-zero of MXCSR, which also has the status flags.
# AArch64: the bit FZ of FPCR. The status flags are in FPSR; a value here has FPCR in the low 32
# bits and FPSR in the high ones.
_FLUSH = np.uint64(0x8040 if _IS_X86 else 1 << 24 if _IS_ARM else 0)

_I32, _I64, _POINTER = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_HALF = ir.Constant(_I64, 32)


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _fpsr(builder):
    # The register is named by metadata: older LLVMs have no intrinsic for it, and Numba's LLVM has
    # no assembler for inline code.
    return builder.module.add_metadata(["fpsr"])


@intrinsic
def _read(typingctx):
    """The floating-point control and status of this thread; 0 on other architectures."""

    def codegen(context, builder, signature, arguments):
        if _IS_X86:
            slot = cgutils.alloca_once(builder, _I32)
            pointer = builder.bitcast(slot, _POINTER)
            _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), pointer)
            return builder.zext(builder.load(slot), _I64)
        if _IS_ARM:
            control = _call(builder, "llvm.aarch64.get.fpcr", _I64)
            status = _call(builder, "llvm.read_volatile_register.i64", _I64, _fpsr(builder))
            return builder.or_(control, builder.shl(status, _HALF))
        return ir.Constant(_I64, 0)

    return types.uint64(), codegen


@intrinsic
def _write(typingctx, value):
    """Sets the floating-point control and status of this thread, as `_read` returns them."""

    def codegen(context, builder, signature, arguments):
        if _IS_X86:
            slot = cgutils.alloca_once_value(builder, builder.trunc(arguments[0], _I32))
            pointer = builder.bitcast(slot, _POINTER)
            _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), pointer)
        elif _IS_ARM:
            status = builder.lshr(arguments[0], _HALF)
            control = builder.zext(builder.trunc(arguments[0], _I32), _I64)
            _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), control)
            register = _fpsr(builder)
            _call(builder, "llvm.write_register.i64", ir.VoidType(), register, status)
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@entry
def _set(value):
    """Sets control and status; returns their previous value."""
    before = _read()
    _write(value)
    return before


@entry
def _add(bits):
    """Sets some bits of the control; returns the previous control and status."""
    before = _read()
    _write(before | bits)
    return before


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """A context without denormals; at its end, control and status flags are restored."""
    before = _add(_FLUSH)
    try:
        yield
    finally:
        _set(np.uint64(before))
