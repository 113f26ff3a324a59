"""Configuration: the choice of backend, threads, the command line, and what a user is told."""

from __future__ import annotations

import sys
import types
from importlib import metadata

import numpy as np
import pytest
from subprocesses import python

import rnnfast
from rnnfast import _backend, _config

NATIVE = _backend.native_is_installed()


class TestBackend:
    def test_the_environment_forces_one(self):
        done = python("import rnnfast; rnnfast.show_config()", RNNFAST_BACKEND="numpy")
        assert "backend  numpy" in done.stdout

    def test_the_environment_with_an_unknown_name_fails(self):
        code = "import rnnfast, numpy as np; rnnfast.GRU(1, 1)(np.zeros((1, 1), 'f4'))"
        done = python(code, RNNFAST_BACKEND="fast")
        assert done.returncode
        text = "ValueError: RNNFAST_BACKEND: expected one of native, numba, numpy, got 'fast'"
        assert text in done.stderr

    def test_the_best_one_is_chosen(self):
        code = "import rnnfast._backend as b; print(b.current().name)"
        best = "native" if NATIVE else "numba"
        if best == "numba":
            pytest.importorskip("numba")
        assert python(code).stdout.strip() == best

    @pytest.fixture
    def nothing_chosen(self, monkeypatch):
        monkeypatch.delenv("RNNFAST_BACKEND", raising=False)
        monkeypatch.setattr(_backend, "_current", None)
        for name in ("native", "numba"):
            monkeypatch.setitem(_backend.BACKENDS, name, f"rnnfast._missing_{name}")

    @pytest.mark.filterwarnings("ignore:backend. native is not available:RuntimeWarning")
    def test_missing_ones_are_passed_over(self, nothing_chosen):
        assert _backend.current().name == "numpy"

    def test_a_missing_one_that_is_forced_fails(self, nothing_chosen, monkeypatch):
        monkeypatch.setenv("RNNFAST_BACKEND", "numba")
        with pytest.raises(RuntimeError, match="backend: numba is not available: No module named"):
            _backend.current()

    def test_one_that_refuses_is_not_passed_over(self, nothing_chosen, monkeypatch):
        def load():
            raise RuntimeError("RNNFAST_ISA=neon: this CPU does not support it")

        module = types.ModuleType("rnnfast._missing_native")
        module.load = load
        monkeypatch.setitem(sys.modules, module.__name__, module)
        with pytest.raises(RuntimeError, match="RNNFAST_ISA=neon: this CPU does not support it"):
            _backend.current()

    def test_set_backend(self, keep_backend):
        rnnfast.set_backend("numpy")
        assert _backend.current().name == "numpy"
        for wrong in ("fast", None, ["numpy"]):
            with pytest.raises(ValueError, match="backend: expected one of native, numba, numpy"):
                rnnfast.set_backend(wrong)
        assert _backend.current().name == "numpy"

    @pytest.mark.skipif(NATIVE, reason="the compiled module is there")
    def test_native_without_the_compiled_module(self, keep_backend):
        before = _backend.current()
        with pytest.raises(RuntimeError, match="backend: native is not available: No module named"):
            rnnfast.set_backend("native")
        assert _backend.current() is before

    def test_import_is_light(self):
        code = (
            "import sys, rnnfast; print(sorted({'numba', 'torch', 'matplotlib'} & {*sys.modules}))"
        )
        assert python(code).stdout.strip() == "[]"

    def test_import_warns_where_the_compiled_module_is_missing(self):
        shown = "RuntimeWarning: rnnfast was "
        assert (shown in python("import rnnfast").stderr) == (not NATIVE)
        assert shown not in python("import rnnfast", RNNFAST_BACKEND="numpy").stderr


class TestThreads:
    @pytest.fixture(autouse=True)
    def restored(self):
        before, wanted = rnnfast.get_num_threads(), _config._threads
        yield
        rnnfast.set_num_threads(before)
        _config._threads = wanted

    def test_set_and_get(self):
        for n in (1, 3, np.int64(2)):
            rnnfast.set_num_threads(n)
            assert rnnfast.get_num_threads() == n

    def test_wrong_numbers(self):
        before = rnnfast.get_num_threads()
        with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
            rnnfast.set_num_threads(0)
        with pytest.raises(TypeError, match="n: expected an integer, got float"):
            rnnfast.set_num_threads(2.0)
        assert rnnfast.get_num_threads() == before

    def test_default_is_what_the_process_may_use(self):
        code = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    want = 1
else:
    want = os.cpu_count()
import rnnfast
print(rnnfast.get_num_threads() == want)
"""
        assert python(code).stdout.strip() == "True"

    def test_environment(self):
        code = "import rnnfast; print(rnnfast.get_num_threads())"
        assert python(code, RNNFAST_NUM_THREADS="3").stdout.strip() == "3"

    @pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
    def test_environment_with_nonsense(self, text):
        code = "import rnnfast; print('imported'); rnnfast.get_num_threads()"
        done = python(code, RNNFAST_NUM_THREADS=text)
        assert "imported" in done.stdout
        wrong = f"RNNFAST_NUM_THREADS: expected an integer in 1..1024, got '{text}'"
        assert wrong in done.stderr

    @pytest.mark.skipif(not NATIVE, reason="needs the compiled module")
    def test_threadpoolctl_sees_and_limits(self, keep_backend):
        threadpoolctl = pytest.importorskip("threadpoolctl", minversion="3.2")
        rnnfast.set_backend("native")
        rnnfast.set_num_threads(2)
        (pool,) = (p for p in threadpoolctl.threadpool_info() if p["user_api"] == "rnnfast")
        assert pool["num_threads"] == 2
        with threadpoolctl.threadpool_limits(1, user_api="rnnfast"):
            assert rnnfast.get_num_threads() == 1
        assert rnnfast.get_num_threads() == 2

    @pytest.mark.skipif(not NATIVE, reason="needs the compiled module")
    @pytest.mark.skipif(sys.platform != "linux", reason="finds the loaded libraries of Linux")
    def test_threadpoolctl_limits_the_first_call(self):
        """Which loads nothing that the limit would come too early for."""
        pytest.importorskip("threadpoolctl", minversion="3.2")
        code = """
import numpy as np, rnnfast, threadpoolctl
with threadpoolctl.threadpool_limits(1):
    rnnfast.GRU(2, 3)(np.ones((4, 2), np.float32))
    print(rnnfast.get_num_threads())
print(rnnfast.get_num_threads())
"""
        done = python(code, RNNFAST_NUM_THREADS="3")
        assert done.stdout.split() == ["1", "3"], done.stderr


class TestShowConfig:
    def test_returns_what_it_prints(self, capsys):
        config = rnnfast.show_config()
        assert capsys.readouterr().out == f"{config}\n"
        assert list(config) == [
            "version",
            "backend",
            "native",
            "isa",
            "isas",
            "amx",
            "threads",
            "cuda",
        ]
        assert config["version"] == rnnfast.__version__
        assert config["backend"] == _backend.current().name
        assert config["threads"] == rnnfast.get_num_threads()
        assert config["isa"] == rnnfast.active_isa()
        assert config["amx"] in ((True, False) if config["isa"] else (None,))
        assert (config["native"] == "compiled") == NATIVE
        assert bool(config["isas"]) == NATIVE

    def test_isa_is_that_of_the_native_backend_only(self, keep_backend):
        rnnfast.set_backend("numpy")
        assert rnnfast.active_isa() is None

    def test_command_line(self):
        code = (
            "import runpy, sys; sys.argv[1:] = {}; runpy.run_module('rnnfast', run_name='__main__')"
        )
        done = python(code.format(["info"]), RNNFAST_BACKEND="numpy")
        assert done.returncode == 0 and "backend  numpy" in done.stdout
        for wrong in ([], ["nonsense"], ["info", "more"]):
            done = python(code.format(wrong), RNNFAST_BACKEND="numpy")
            assert done.returncode == 2 and done.stderr.startswith("usage: python -m rnnfast")
        for command in ("info", "demo"):
            done = python(code.format([command]), RNNFAST_NUM_THREADS="many")
            assert done.returncode == 1
            assert done.stderr.startswith("rnnfast: RNNFAST_NUM_THREADS: expected an integer")


def test_version_is_that_of_the_distribution():
    try:
        want = metadata.version("rnnfast")
    except metadata.PackageNotFoundError:
        want = "0+unknown"
    assert rnnfast.__version__ == want
