"""Shared fixtures. `RNNFAST_BACKEND` chooses the backend for a whole run."""

from __future__ import annotations

import os

import numpy as np
import pytest

import rnnfast
from rnnfast import _backend
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
