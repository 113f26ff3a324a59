"""Files that are damaged, or made to do harm: a ValueError that says why, and little memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from files import MODULES, joined, mutated, saved, split
from oracle import make

import rnnfast

# Beyond what an error and the reader's own objects take.
SMALL = 1_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.safetensors"


@pytest.fixture
def valid(tmp_path):
    """The header and the data of a layer with I 4, H 5 and 2 layers."""
    return split(saved(make("lstm", num_layers=2), tmp_path))


def message(path, content: bytes) -> str:
    """What `load` says of a file, once it has been seen to take little memory."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            rnnfast.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * len(content) + SMALL
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "want"),
    [
        (b"", "file: expected at least 8 bytes"),
        (b"\x02\0\0\0\0\0\0", "file: expected at least 8 bytes"),
        (struct.pack("<Q", 3) + b"{}", "header: expected at most 2 bytes, got a length of 3"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header: expected at most 2 bytes"),
        (joined("", b""), "header: expected '{' at character 0, got 'its end'"),
        (joined(" {}", b""), "header: expected '{' at character 0"),
        (joined("\ufeff{}", b""), "header: expected '{' at character 0"),
        (joined(b"{\xff}", b""), "header: expected UTF-8"),
        (joined("{} x", b""), "header: expected its end at character 3, got 'x'"),
        (joined("{", b""), "header: expected a string at character 1, got 'its end'"),
        (joined("{}", b""), "metadata format: expected one of rnnfast, got None"),
        (joined("[" * 100_000, b""), "header: expected '{'"),
        (joined('{"a":' * 100_000, b""), "'a': expected dtype, shape and data_offsets, got 'a'"),
        (joined('{"__metadata__":' * 9, b""), "header: expected a string at character 32"),
        (joined('{"__metadata__":{"a":[]}}', b""), "header: expected a string"),
        (joined('{"__metadata__":{"a":"","a":""}}', b""), "each key once in an object, got 'a'"),
        (joined('{"__metadata__":{},"__metadata__":{}}', b""), "got '__metadata__' twice"),
        (joined('{"a\n":{}}', b""), "header: expected a valid string at character 1"),
        (joined('{"\\x":{}}', b""), "header: expected a valid string"),
        (joined('{"a', b""), "header: expected a valid string"),
        (joined("{'a':{}}", b""), "header: expected a string"),
        (joined('{"a":{},}', b""), "'a': dtype: expected one of F32, F64, got ''"),
        (b"\x80\x04K\x01." * 9, "header: expected at most"),  # a pickle
    ],
)
def test_no_safetensors_file(path, content, want):
    assert want in message(path, content)


def entry(text: str) -> str:
    return f'{{"a": {text}}}'


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('"F32"', "header: expected '{'"),
        ("{}", "'a': dtype: expected one of F32, F64, got ''"),
        ('{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}', "dtype: expected one of F32, F64"),
        ('{"dtype":5,"shape":[1],"data_offsets":[0,4]}', "header: expected a string"),
        ('{"dtype":"F32","shape":[1]}', "'a': expected a shape and two data_offsets, got fewer"),
        ('{"dtype":"F32","data_offsets":[0,4]}', "'a': expected a shape and two data_offsets"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[0]}', "two data_offsets, got fewer"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}', "expected at most 2 integers"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[0,4e0]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[0,04]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[0,"4"]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[true],"data_offsets":[0,4]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[null],"data_offsets":[0,4]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[1,],"data_offsets":[0,4]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[,1],"data_offsets":[0,4]}', "an integer of 0 or more"),
        ('{"dtype":"F32","shape":[1 1],"data_offsets":[0,4]}', "header: expected ','"),
        (f'{{"dtype":"F32","shape":[{"9" * 10**6}]}}', "an integer of 0 or more"),
        (f'{{"dtype":"F32","shape":[{"1," * 10**5}1]}}', "expected at most 64 integers"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[4,0]}', "expected 4 bytes, got data_offsets"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[0,8]}', "expected 4 bytes, got data_offsets"),
        ('{"dtype":"F32","shape":[3037000500,3037000500],"data_offsets":[0,4]}', "bytes, got data"),
        ('{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}', "bytes, got data"),
        ('{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}', "got 'shape' twice"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}', "data_offsets, got 'x'"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[4,8]}', "data that begins at 0, got 4"),
        ('{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', "expected 8 bytes of data, got 4"),
        ('{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', "expected 0 bytes of data, got 4"),
    ],
)
def test_a_wrong_array(path, text, want):
    """Of one with four bytes of data."""
    assert want in message(path, joined(entry(text), bytes(4)))


Change = Callable[[dict], object]


def option(**values: str | None) -> Change:
    """Gives options other texts; None: takes them away."""

    def change(header: dict) -> None:
        for name, value in values.items():
            del header["__metadata__"][name]
            if value is not None:
                header["__metadata__"][name] = value

    return change


def added(**values: str) -> Change:
    return lambda header: header["__metadata__"].update(values)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (lambda h: h.pop("__metadata__"), "metadata format: expected one of rnnfast, got None"),
        (option(format="pt"), "metadata format: expected one of rnnfast, got 'pt'"),
        (option(format_version="2"), "metadata format_version: expected one of 1, got '2'"),
        (added(**{"class": "GRU6"}), "metadata class: expected one of RNN, GRU, LSTM, RNNCell"),
        (added(**{"class": "Module"}), "metadata class: expected one of"),
        (added(**{"class": "GRU"}), "metadata: expected for GRU the options batch_first, bias"),
        (option(hidden_size=None), "metadata: expected for LSTM the options"),
        (added(seed="1"), "metadata: expected for LSTM the options"),
        (added(hidden_size="10"), "weight_ih_l0: expected shape (40, 4), got (20, 4)"),
        (added(hidden_size="1000000000"), "weight_ih_l0: expected shape (4000000000, 4)"),
        (added(input_size="1" + "0" * 30), "weight_ih_l0: expected shape (20, 1000"),
        (added(input_size="9" * 5000), "input_size: expected an integer, got str"),
        (added(hidden_size="05"), "hidden_size: expected an integer, got str"),
        (added(hidden_size="5.0"), "hidden_size: expected an integer, got float"),
        (added(hidden_size="true"), "hidden_size: expected an integer, got bool"),
        (added(hidden_size="0"), "hidden_size: expected at least 1, got 0"),
        (added(hidden_size="-5"), "hidden_size: expected at least 1, got -5"),
        (added(hidden_size="[" * 32), "hidden_size: expected an integer, got str"),
        (added(hidden_size="[" * 100_000), "hidden_size: expected an integer, got str"),
        (added(proj_size="5"), "proj_size: expected less than 5, got 5"),
        (added(proj_size="3"), "weight_hr_l0: expected an array, got none"),
        (added(num_layers="1"), "'weight_ih_l1': expected no such array, got one"),
        (added(num_layers="3"), "weight_hh_l2: expected an array, got none"),
        (added(num_layers="1000000000"), "num_layers: expected the layers of the file"),
        (added(num_layers="many"), "num_layers: expected an integer, got str"),
        (added(bias="false"), "'bias_ih_l0': expected no such array, got one"),
        (added(bias="1"), "bias: expected a bool, got int"),
        (added(bidirectional="true"), "weight_ih_l0_reverse: expected an array, got none"),
        (added(dropout="NaN"), "dropout: expected a probability in 0..1, got nan"),
        (added(dropout="1.5"), "dropout: expected a probability in 0..1, got 1.5"),
        (added(dropout="high"), "dropout: expected a number, got str"),
        (added(dtype="float64"), "weight_ih_l0: expected float64, got float32"),
        (added(dtype="f4"), "dtype: expected one of float32, float64, got 'f4'"),
        (added(dtype="i4,(1000000000,)f8"), "dtype: expected one of float32, float64"),
        (lambda h: h.update(other=h.pop("bias_ih_l1")), "bias_ih_l1: expected an array, got none"),
        (lambda h: h["bias_ih_l1"].update(shape=[4, 5]), "expected shape (20,), got (4, 5)"),
    ],
)
def test_not_a_layer(path, valid, change, want):
    header, data = valid
    change(header)
    assert want in message(path, joined(header, data))


def test_all_arrays_that_are_wrong_are_named(path, valid):
    header, data = valid
    header["other"] = header.pop("bias_hh_l0")
    header["weight_hh_l0"]["shape"] = [5, 20]
    text = message(path, joined(header, data))
    assert text == (
        "bias_hh_l0: expected an array, got none; weight_hh_l0: expected shape (20, 5), "
        "got (5, 20); 'other': expected no such array, got one"
    )


def test_an_error_does_not_grow_with_the_file(path, valid):
    header, data = valid
    options = header["__metadata__"]
    for name in ("format", "class", "dtype", "nonsense"):
        header["__metadata__"] = {**options, name: "x" * 100_000, name * 10_000: ""}
        assert len(message(path, joined(header, data))) < 1000
    header["__metadata__"] = options
    end = len(data)
    header |= {
        f"{k}" * 200: {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        for k in range(1000)
    }
    text = message(path, joined(header, data))
    assert text.endswith("and more") and len(text) < 4000


def test_overlaps_and_holes(path, valid):
    header, data = valid
    header["bias_hh_l0"]["data_offsets"] = header["bias_ih_l0"]["data_offsets"]
    assert "expected data that begins at 800, got 720" in message(path, joined(header, data))


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 100, 500, -81, -1])
def test_a_file_cut_short(path, valid, cut):
    assert message(path, joined(*valid)[:cut])


def test_a_file_with_more(path, valid):
    assert "bytes of data" in message(path, joined(*valid) + b"\0")


def test_a_file_that_is_cut_while_it_is_read(path, valid, monkeypatch):
    path.write_bytes(joined(*valid)[:-1])

    class Longer:
        def __init__(self, size: int) -> None:
            self.st_size = size

    monkeypatch.setattr(rnnfast._safetensors.os, "fstat", lambda _: Longer(path.stat().st_size + 1))
    with pytest.raises(ValueError, match="bias_hh_l1: expected 80 bytes, got 79"):
        rnnfast.load(path)


def bomb(n: int) -> dict[str, str]:
    """Headers of about n bytes whose JSON would take many times as much as objects."""
    return {
        "lists": '{"a":[' + "[]," * (n // 3),
        "objects": '{"__metadata__":{"a":{' + '"":{},' * (n // 6),
        "integers": '{"a":{"shape":[' + "1," * (n // 2),
        "names": "{" + ",".join(f'"{k:x}":{{}}' for k in range(n // 10)),
        "escapes": '{"' + "\\u0041" * (n // 6),
        "keys": '{"__metadata__":{' + ",".join(f'"{k:x}":""' for k in range(n // 10)),
    }


@pytest.mark.parametrize("kind", bomb(0))
def test_headers_that_would_grow(path, kind):
    assert message(path, joined(bomb(1_000_000)[kind], b""))


@pytest.mark.parametrize("kind", MODULES)
def test_mutations(path, kind):
    """Each is either a layer of the same class, or a ValueError."""
    constructor, options = MODULES[kind]
    module = constructor(4, 5, seed=3, **options)
    content = saved(module, path.parent)
    other = saved(make("gru", dtype="float64"), path.parent)
    rng = np.random.default_rng([5, list(MODULES).index(kind)])
    errors = 0
    for _ in range(300):
        data = mutated(rng, content, other)
        path.write_bytes(data)
        tracemalloc.start()
        try:
            loaded = rnnfast.load(path)
            assert type(loaded) is (rnnfast.GRU if data == other else type(module))
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            errors += 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < SMALL
    assert 150 < errors < 300


def test_bytes_of_data_may_be_anything(path, valid):
    """They are numbers, whatever they are."""
    header, data = valid
    path.write_bytes(joined(header, np.random.default_rng(3).bytes(len(data))))
    assert repr(rnnfast.load(path)) == "LSTM(4, 5, num_layers=2)"
