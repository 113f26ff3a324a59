"""Every ISA compiled in, forced in a process of its own: it runs, and its results are right."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from oracle import KINDS, make, normal, parts, state_for
from subprocesses import python
from tolerances import REFERENCE, assert_close

import rnnfast
from rnnfast import _backend
from rnnfast._cells import DTYPES

_native = pytest.importorskip(_backend.NATIVE_MODULE, reason="no compiled module, so no ISAs")

VECTOR_BYTES = {
    "generic": 16,
    "avx2": 32,
    "avx2vnni": 32,
    "avx512": 64,
    "avx512vnni": 64,
    "avx512bf16": 64,
    "neon": 16,
    "neondot": 16,
}
HIDDEN_SIZES = (5, 16, 33)
STEPS, BATCH, INPUT = 40, 13, 9


def results() -> dict[str, np.ndarray]:
    """Both passes of every layer, by the backend in use; the same numbers in both dtypes."""
    arrays = {}
    for kind in KINDS:
        for hidden in HIDDEN_SIZES:
            for dtype in DTYPES:
                rng = np.random.default_rng(hidden)
                layer = make(kind, INPUT, hidden, dtype=dtype, bidirectional=True)
                layer.load_state_dict(make(kind, INPUT, hidden, bidirectional=True).state_dict())
                state = state_for(layer, BATCH, rng)
                width = 2 * parts(state)[0].shape[-1]
                x, d_output = (normal(rng, (STEPS, BATCH, n), "float32") for n in (INPUT, width))
                state = rounded(state, dtype)
                lengths = rng.integers(0, STEPS + 1, BATCH)
                tape = layer.record(x.astype(dtype), state, lengths=lengths)
                gradients = tape.backward(d_output.astype(dtype), tape.state)
                own = {"forward output": tape.output, "backward dx": gradients.input}
                own.update({f"forward state {k}": s for k, s in enumerate(parts(tape.state))})
                own.update({f"backward {n}": g for n, g in gradients.parameters.items()})
                arrays.update({f"{dtype} {n} {kind} {hidden}": a for n, a in own.items()})
    return arrays


def rounded(state, dtype):
    """A state in numbers that float32 has."""
    arrays = tuple(s.astype("float32").astype(dtype) for s in parts(state))
    return arrays if isinstance(state, tuple) else arrays[0]


def forced(isa: str, path: Path):
    """Runs `results` in a process with `isa` forced, which writes them to `path`."""
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "import numpy as np, rnnfast, test_isa\n"
        f"np.savez({str(path)!r}, **test_isa.results())\n"
        "from rnnfast import _native\n"
        "print(rnnfast.active_isa(), rnnfast.show_config()['isa'], _native.vector_bytes())"
    )
    return python(code, RNNFAST_ISA=isa, RNNFAST_BACKEND="native")


@pytest.fixture(scope="module")
def want() -> dict[str, np.ndarray]:
    """The reference's results in float64."""
    before = _backend.current().name
    _backend.use("numpy")
    try:
        return {n: a for n, a in results().items() if n.startswith("float64")}
    finally:
        _backend.use(before)


@pytest.fixture(scope="module")
def got(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Each ISA's results, of those that this CPU has."""
    folder, arrays = tmp_path_factory.mktemp("isa"), {}
    for isa in _native.supported_isas():
        path = folder / f"{isa}.npz"
        done = forced(isa, path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{isa} {isa} {VECTOR_BYTES[isa]}"
        with np.load(path) as file:
            arrays[isa] = dict(file)
    return arrays


@pytest.mark.parametrize("isa", _native.isas())
def test_results(isa, got, want, dtype):
    if isa not in got:
        pytest.skip("this CPU does not have it")
    chosen = {n: a for n, a in got[isa].items() if n.startswith(dtype)}
    assert len(chosen) == len(want)
    for name, array in chosen.items():
        _, which, rest = name.split(" ", 2)
        exact = want[f"float64 {which} {rest}"]
        assert_close(array, exact, REFERENCE[dtype, which], f"{isa} {name}")


@pytest.mark.parametrize("isa", _native.isas())
def test_it_is_its_own_kernels_that_ran(isa, got, dtype):
    """Without fused multiply-adds each product is rounded, and bits differ."""
    others = {
        name: arrays for name, arrays in got.items() if (name == "generic") != (isa == "generic")
    }
    if isa not in got or not others:
        pytest.skip("this CPU has no other ISA to compare with")
    for arrays in others.values():
        same = [np.array_equal(a, arrays[n]) for n, a in got[isa].items() if n.startswith(dtype)]
        assert not all(same)


def test_the_best_one_is_chosen():
    done = python("import rnnfast; print(rnnfast.active_isa())", RNNFAST_BACKEND="native")
    assert done.stdout.strip() == _native.supported_isas()[0]


def test_all_are_shown():
    assert rnnfast.show_config()["isas"] == _native.isas()
    assert set(_native.supported_isas()) <= set(_native.isas())


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "avx2 "])
def test_an_unknown_one_fails_with_a_sentence(isa):
    compiled = ", ".join(_native.isas())
    for code in ("import rnnfast; rnnfast.active_isa()", "import rnnfast; rnnfast.show_config()"):
        done = python(code, RNNFAST_ISA=isa)
        assert done.returncode == 1
        sentence = f"RuntimeError: RNNFAST_ISA={isa}: not compiled in (compiled in: {compiled})"
        assert done.stderr.splitlines()[-1] == sentence


def test_an_empty_one_forces_nothing():
    done = python("import rnnfast; print(rnnfast.active_isa())", RNNFAST_ISA="")
    assert done.stdout.strip() == _native.supported_isas()[0]


@pytest.mark.parametrize("isa", _native.isas())
def test_one_that_the_cpu_lacks_fails_with_a_sentence(isa):
    if isa in _native.supported_isas():
        pytest.skip("this CPU has it")
    done = python("import rnnfast; rnnfast.active_isa()", RNNFAST_ISA=isa)
    has = ", ".join(_native.supported_isas())
    sentence = f"RuntimeError: RNNFAST_ISA={isa}: this CPU does not support it (it has: {has})"
    assert done.stderr.splitlines()[-1] == sentence


AMX = {"amx_tile", "amx_bf16", "amx_int8", "avx512_bf16"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/cpuinfo")
def test_amx_is_used_where_it_is_and_may_be():
    def used(**environment) -> bool:
        code = "import rnnfast; print(rnnfast.show_config()['amx'])"
        done = python(code, RNNFAST_BACKEND="native", **environment)
        assert done.returncode == 0, done.stderr
        return {"True": True, "False": False}[done.stdout.splitlines()[-1]]

    assert not used(RNNFAST_AMX="0")
    assert used() == used(RNNFAST_AMX="") == used(RNNFAST_AMX="1")
    if used():
        assert set(Path("/proc/cpuinfo").read_text().split()) >= AMX
        assert used(RNNFAST_ISA="avx512bf16")
        for isa in set(_native.supported_isas()) - {"avx512bf16"}:
            assert not used(RNNFAST_ISA=isa)


@pytest.mark.parametrize("value", ["2", "yes"])
def test_another_value_for_amx_fails_with_a_sentence_at_once(value):
    """Not as soon as low precision is asked for, of which float32 has nothing."""
    call = "import numpy; rnnfast.LSTM(8, 16)(numpy.ones((2, 1, 8), 'f4'))"
    for code in ("rnnfast.show_config()", call):
        done = python(f"import rnnfast; {code}", RNNFAST_AMX=value, RNNFAST_BACKEND="native")
        sentence = f"RuntimeError: RNNFAST_AMX: expected 0 or 1, got '{value}'"
        assert done.stderr.splitlines()[-1] == sentence
    done = python(f"import rnnfast; {call}", RNNFAST_AMX=value, RNNFAST_BACKEND="numpy")
    assert done.returncode == 0


def test_the_isa_does_not_matter_to_other_backends():
    code = "import rnnfast; print(rnnfast.active_isa())"
    assert python(code, RNNFAST_ISA="sse9", RNNFAST_BACKEND="numpy").stdout.strip() == "None"


@pytest.mark.parametrize("name", _backend.BACKENDS)
def test_a_backend_that_is_forced_runs(name):
    if name == "numba":
        pytest.importorskip("numba")
    code = (
        "import sys, numpy as np, rnnfast, rnnfast._backend as b\n"
        "rnnfast.GRU(2, 3)(np.ones((4, 2), np.float32))\n"
        "print(b.current().name, *(m for m in ('numba', 'rnnfast._native') if m in sys.modules))"
    )
    modules = {"native": "rnnfast._native", "numba": "numba", "numpy": ""}
    done = python(code, RNNFAST_BACKEND=name)
    assert done.stdout.split() == f"{name} {modules[name]}".split(), done.stderr


@pytest.mark.parametrize("text", ["0", "many", "2.5"])
def test_a_wrong_number_of_threads_fails_in_the_first_call(text):
    code = "import numpy as np, rnnfast; rnnfast.GRU(2, 3)(np.ones((4, 2), np.float32))"
    done = python(code, RNNFAST_NUM_THREADS=text, RNNFAST_BACKEND="native")
    assert done.returncode == 1
    sentence = f"ValueError: RNNFAST_NUM_THREADS: expected an integer in 1..1024, got {text!r}"
    assert done.stderr.splitlines()[-1] == sentence


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_the_number_of_threads_is_obeyed():
    code = """
import os, numpy as np, rnnfast
layer = rnnfast.LSTM(32, 64, seed=0)
x = np.ones((50, 32, 32), np.float32)
before = len(os.listdir("/proc/self/task"))
layer.record(x).backward(np.ones((50, 32, 64), np.float32))
print(len(os.listdir("/proc/self/task")) - before)
"""
    for count in ("1", "2", "4"):
        done = python(code, RNNFAST_NUM_THREADS=count, RNNFAST_BACKEND="native")
        assert done.stdout.strip() == str(int(count) - 1), done.stderr
