"""Shared fixtures. `RNNFAST_BACKEND` chooses the backend for a whole run."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Generator
from contextlib import redirect_stdout

import fake_cupy
import numpy as np
import pytest
from c_programs import find_source, find_tool, project_version, run
from emulated_cuda import Emulator
from oracle import KINDS, use_or_skip

import rnnfast
from rnnfast import _backend, _config, _cuda, _cupy
from rnnfast._cells import DTYPES
from rnnfast._low_precision import FORMATS

# Processes that tests start import what this one imports, not what lies in the current folder.
os.environ["PYTHONSAFEPATH"] = "1"
# Where test processes share the cores, a thread of torch's that spins holds one up for whole time
# slices: operations of 0.1 ms took 12.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_report_header() -> str:
    """Says what is tested, so that a run on a fallback is not mistaken for another."""
    with redirect_stdout(io.StringIO()):
        config = rnnfast.show_config()
    names = ["version", "backend", "isa", "threads"]
    if config["backend"] != "native":
        names.append("native")
    return "rnnfast: " + ", ".join(f"{name} {config[name]}" for name in names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `RNNFAST_ONE_BACKEND=1` tests that name another backend than the run's are left out."""
    if os.environ.get("RNNFAST_ONE_BACKEND") != "1":
        return
    others = set(_backend.BACKENDS) - {_backend.current().name}

    def names_another(item: pytest.Item) -> bool:
        named = getattr(item, "callspec", None)
        values = [v for v in named.params.values() if isinstance(v, str)] if named else []
        fixtures = getattr(item, "fixturenames", ())
        return not others.isdisjoint(values) or not others.isdisjoint(fixtures)

    left_out = [item for item in items if names_another(item)]
    items[:] = [item for item in items if not names_another(item)]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With `RNNFAST_NO_SKIP=1` a test that is skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("RNNFAST_NO_SKIP") == "1":
        report.outcome = "failed"
        report.longrepr = f"RNNFAST_NO_SKIP=1: {call.excinfo.value}"
    return report


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture(params=list(DTYPES))
def dtype(request) -> str:
    return request.param


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    """Each kind of layer; files whose tests have other kinds have a fixture of their own."""
    return request.param


@pytest.fixture(params=FORMATS)
def precision(request) -> str:
    """Each precision other than the dtype's."""
    return request.param


@pytest.fixture(params=_backend.BACKENDS)
def backend(request, keep_backend) -> str:
    """Each backend in turn, in use."""
    return use_or_skip(request.param)


@pytest.fixture
def keep_backend():
    """Puts the backend back that the run is about."""
    before = _backend.current().name
    yield before
    _backend.use(before)


@pytest.fixture
def native(keep_backend):
    """The compiled module, with its backend in use; skips where there is none."""
    use_or_skip("native")
    return importlib.import_module(_backend.NATIVE_MODULE)


@pytest.fixture
def estimated(native):
    """Passes are shared out as estimated, whatever took less on a machine that is busy."""
    native.force_schedule("estimated")
    yield native
    native.force_schedule("none")


@pytest.fixture
def taken(monkeypatch):
    """For each call that reaches `rnnfast.torch.eager.again`: whether it was one as before."""
    eager = importlib.import_module("rnnfast.torch.eager")
    found, again = [], eager.again

    def spy(*args):
        result = again(*args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(eager, "again", spy)
    return found


@pytest.fixture
def keep_threads():
    """Puts the number of threads back, and that of torch's where it is imported."""
    before, wanted = rnnfast.get_num_threads(), _config._threads
    torch = sys.modules.get("torch")
    of_torch = torch.get_num_threads() if torch else 0
    yield
    rnnfast.set_num_threads(before)
    _config._threads = wanted
    if torch:
        torch.set_num_threads(of_torch)


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory) -> _cuda.Library:
    """The library of the CUDA kernels on an emulated device, whose memory is the host's."""
    csrc = find_source("csrc")
    file = tmp_path_factory.mktemp("cuda") / _cuda.FILE
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-DRNNFAST_SCALAR", f"-I{csrc}"]
    version = f'-DRNNFAST_VERSION="{project_version()}"'
    run(find_tool("c++", "g++"), *flags, version, csrc / "tests/cuda_emulated.cpp", "-o", file)
    return _cuda.Library(file)


@pytest.fixture
def emulator(emulated_library):
    """The device of that library, to be changed for the test."""
    emulator = Emulator(emulated_library)
    emulator.use()
    yield emulator
    emulator.capture(False)
    emulator.use()


@pytest.fixture
def emulated_cupy(emulated_library, monkeypatch):
    """A stand-in for CuPy, whose arrays lie on the emulated device."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(_cupy, "library", lambda: emulated_library)
    fake_cupy.devices_of.clear()
    fake_cupy.waited_for.clear()


@pytest.fixture
def by_the_kernels(request, monkeypatch):
    """A test of the CUDA kernels fails where all of it was run by others; with False, where not."""
    calls = []
    forward = _cuda.Library.forward

    def counted(self, *args):
        calls.append(args)
        return forward(self, *args)

    monkeypatch.setattr(_cuda.Library, "forward", counted)
    yield
    assert bool(calls) == getattr(request, "param", True)


@pytest.fixture
def fresh_compiler():
    """No test meets what another has compiled by torch."""
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    yield
    torch.compiler.reset()
