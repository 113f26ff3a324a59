"""The library of the CUDA kernels as Python looks for it, with and without one."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from c_programs import find_source, find_tool, run

import rnnfast
from rnnfast import _config, _cuda, _cupy


@pytest.fixture(autouse=True)
def forget():
    """What was found before."""
    _cuda._found.cache_clear()
    yield
    _cuda._found.cache_clear()


def c_library(tmp_path, monkeypatch, *, version: str, devices: int) -> None:
    """Puts a library in place of the one that is looked for."""
    source = tmp_path / "library.c"
    source.write_text(
        f"""
const char* rnnfast_cuda_version(void) {{ return "{version}"; }}
const char* rnnfast_cuda_error(void) {{ return "CUDA: no driver"; }}
int rnnfast_cuda_devices(void) {{ return {devices}; }}
int rnnfast_cuda_runs(void) {{ return 1; }}
int rnnfast_cuda_saved(const char* cell) {{ return cell[0] == 'l' ? 5 : 0; }}
int rnnfast_cuda_workspace(void) {{ return 1; }}
int rnnfast_cuda_forward(void) {{ return 1; }}
int rnnfast_cuda_backward(void) {{ return 1; }}
"""
    )
    file = tmp_path / _cuda.FILE
    run(find_tool("cc", "gcc"), "-shared", "-fPIC", source, "-o", file)
    monkeypatch.setattr(_cuda, "_files", lambda: iter([file]))


def test_none_is_no_error(monkeypatch):
    monkeypatch.setattr(_cuda, "_files", lambda: iter([]))
    assert _cuda.library("1") is None
    assert _cuda.describe("1").startswith("not built: no rnnfast or rnnfast_cuda13 has")


def test_a_device_is_found(tmp_path, monkeypatch):
    c_library(tmp_path, monkeypatch, version="1", devices=2)
    assert _cuda.library("1").saved("lstm") == 5
    assert _cuda.library("1").lacks() == "CUDA: no driver"
    assert _cuda.describe("1") == f"found: 2 devices, {tmp_path / _cuda.FILE}"


@pytest.mark.parametrize("devices", [-1, 0])
def test_no_device(devices, tmp_path, monkeypatch):
    c_library(tmp_path, monkeypatch, version="1", devices=devices)
    assert _cuda.library("1") is None
    assert _cuda.describe("1") == "no device: CUDA: no driver"


def test_another_version_is_not_used(tmp_path, monkeypatch):
    c_library(tmp_path, monkeypatch, version="2", devices=1)
    assert _cuda.library("1") is None
    assert "was built for rnnfast 2, this is 1" in _cuda.describe("1")


def test_a_library_without_the_functions(tmp_path, monkeypatch):
    source = tmp_path / "other.c"
    source.write_text("int nothing;")
    run(find_tool("cc", "gcc"), "-shared", "-fPIC", source, "-o", tmp_path / _cuda.FILE)
    monkeypatch.setattr(_cuda, "_files", lambda: iter([tmp_path / _cuda.FILE]))
    assert _cuda.library("1") is None
    assert _cuda.describe("1").startswith("cannot be opened: ")


def test_a_file_that_is_no_library(tmp_path, monkeypatch):
    (tmp_path / _cuda.FILE).write_bytes(b"nonsense")
    monkeypatch.setattr(_cuda, "_files", lambda: iter([tmp_path / _cuda.FILE]))
    assert _cuda.library("1") is None
    assert _cuda.describe("1").startswith("cannot be opened: ")


def test_show_config_says_so(monkeypatch, capsys):
    monkeypatch.setattr(_cuda, "_files", lambda: iter([]))
    assert rnnfast.show_config()["cuda"].startswith("not built: ")


def test_structures_are_those_of_the_header():
    header = find_source("csrc/include/rnnfast_cuda.h").read_text()
    kinds = {"const char*": "c_char_p", "int32_t": "c_int"}
    for name, own in (
        ("pass", _cuda.Pass),
        ("outputs", _cuda.Outputs),
        ("gradients", _cuda.Gradients),
    ):
        body = re.search(rf"typedef struct rnnfast_cuda_{name} {{(.*?)}}", header, re.S)[1]
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
        declared = [
            (field.strip(), kinds.get(kind, "c_void_p"))
            for kind, fields in re.findall(r"(const \w+\*|\w+\*|\w+) ([^;]+);", body)
            for field in fields.split(",")
        ]
        assert [(field, kind.__name__) for field, kind in own._fields_] == declared


def test_a_call_reads_no_metadata(monkeypatch):
    """Which takes half a millisecond, and each pass asks for the library."""
    _config.version()
    read = []
    monkeypatch.setattr(importlib.metadata, "version", read.append)
    _cupy.library()
    assert read == []
