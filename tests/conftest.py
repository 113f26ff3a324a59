"""Shared fixtures. `RNNFAST_BACKEND` chooses the backend for a whole run."""

from __future__ import annotations

import importlib
import os

import numpy as np
import pytest

import rnnfast
from rnnfast import _backend, _config
from rnnfast._cells import DTYPES

# Processes that tests start import what this one imports, not what lies in the current folder.
os.environ["PYTHONSAFEPATH"] = "1"


def pytest_report_header() -> str:
    """Says what is tested, so that a run on a fallback is not mistaken for another."""
    return f"rnnfast {rnnfast.__version__}: backend {_backend.current().name}"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture(params=list(DTYPES))
def dtype(request) -> str:
    return request.param


@pytest.fixture
def keep_backend():
    """Puts the backend back that the run is about."""
    before = _backend.current().name
    yield before
    _backend.use(before)


@pytest.fixture
def native(keep_backend):
    """The compiled module, with its backend in use; skips where there is none."""
    try:
        _backend.use("native")
    except _backend.MissingBackendError as error:
        pytest.skip(str(error))
    return importlib.import_module(_backend.NATIVE_MODULE)


@pytest.fixture
def keep_threads():
    """Puts the number of threads back."""
    before, wanted = rnnfast.get_num_threads(), _config._threads
    yield
    rnnfast.set_num_threads(before)
    _config._threads = wanted
