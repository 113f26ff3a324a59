"""`save` and `load`: the same layer again, by way of a file that other programs can read."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import stat
import struct
import sys
import warnings

import numpy as np
import pytest
from files import MODULES, assert_same_module, joined, saved, split
from oracle import assert_same_bits, make, normal

import rnnfast
from rnnfast import _safetensors


@pytest.fixture(params=MODULES)
def module(request, dtype):
    constructor, options = MODULES[request.param]
    return constructor(4, 5, dtype=dtype, seed=7, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.safetensors"


def arrays(result) -> list[np.ndarray]:
    """The arrays of an output and state in their order."""
    return [a for r in result for a in arrays(r)] if isinstance(result, tuple) else [result]


class TestRoundTrip:
    def test_is_exact(self, module, path, rng):
        module.save(path)
        loaded = rnnfast.load(path)
        assert_same_module(loaded, module)
        x = normal(rng, (3, 4), module.dtype)
        for got, want in zip(arrays(loaded(x)), arrays(module(x)), strict=True):
            assert_same_bits(got, want)

    def test_keeps_every_bit_pattern(self, path, dtype):
        layer = rnnfast.GRU(40, 30, dtype=dtype)
        generator = np.random.default_rng(3)
        with layer.parameters.edit() as parameters:
            for array in parameters.values():
                array[...] = np.frombuffer(generator.bytes(array.nbytes), dtype).reshape(
                    array.shape
                )
        assert np.isnan(layer.parameters["weight_ih_l0"]).any()
        layer.save(path)
        assert_same_module(rnnfast.load(path), layer)

    def test_what_is_loaded_is_a_whole_layer(self, path):
        layer = make("lstm", num_layers=2, dropout=0.5)
        layer.save(path)
        loaded = rnnfast.load(path)
        assert vars(loaded).keys() == vars(layer).keys()
        for other in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
            assert_same_module(other, loaded)
        x = np.ones((3, 2, 4), np.float32)
        before = loaded(x)[0]
        grads = loaded.record(x).backward(np.ones((3, 2, 5), np.float32))
        with loaded.parameters.edit() as parameters:
            for name, gradient in grads.parameters.items():
                parameters[name] -= gradient
        assert not np.array_equal(loaded(x)[0], before)
        np.testing.assert_array_equal(layer(x)[0], before)

    def test_no_input(self, path):
        layer = rnnfast.RNN(0, 3, bias=False)
        layer.save(path)
        assert_same_module(rnnfast.load(path), layer)

    def test_does_not_warn_of_dropout_again(self, path):
        with pytest.warns(UserWarning, match="dropout"):
            layer = rnnfast.GRU(4, 5, dropout=0.5)
        layer.save(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert rnnfast.load(path).dropout == 0.5

    def test_a_class_of_the_users_is_saved_as_what_it_is_made_from(self, path):
        class Own(rnnfast.LSTM):
            pass

        layer = Own(4, 5, seed=3)
        layer.save(path)
        loaded = rnnfast.load(path)
        assert type(loaded) is rnnfast.LSTM
        for name, array in layer.parameters.items():
            assert_same_bits(loaded.parameters[name], array)

    def test_a_layer_of_another_backend(self, keep_backend, path):
        rnnfast.set_backend("numpy")
        layer = make("gru")
        layer.save(path)
        assert_same_module(rnnfast.load(path), layer)


class TestFormat:
    def test_is_as_described(self, path):
        layer = rnnfast.LSTM(4, 5, bias=False, dtype="float64", seed=3)
        layer.save(path)
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        assert length % 8 == 0 and content[8:9] == b"{"
        header, data = split(content)
        assert header.pop("__metadata__") == {
            "format": "rnnfast",
            "format_version": "1",
            "class": "LSTM",
            "input_size": "4",
            "hidden_size": "5",
            "proj_size": "0",
            "num_layers": "1",
            "bias": "false",
            "batch_first": "false",
            "dropout": "0.0",
            "bidirectional": "false",
            "dtype": "float64",
        }
        assert header == {
            "weight_ih_l0": {"dtype": "F64", "shape": [20, 4], "data_offsets": [0, 640]},
            "weight_hh_l0": {"dtype": "F64", "shape": [20, 5], "data_offsets": [640, 1440]},
        }
        assert data == b"".join(a.astype("<f8").tobytes() for a in layer.parameters.values())

    def test_the_formats_own_library_reads_it(self, module, path):
        oracle = pytest.importorskip("safetensors.numpy")
        module.save(path)
        read = oracle.load_file(path)
        assert read.keys() == module.parameters.keys()
        for name, array in read.items():
            assert_same_bits(array, module.parameters[name], name)

    def test_what_the_formats_own_library_writes_is_read(self, module, path):
        oracle = pytest.importorskip("safetensors.numpy")
        metadata = split(saved(module, path.parent))[0]["__metadata__"]
        tensors = dict(reversed(module.state_dict().items()))
        oracle.save_file(tensors, path, metadata)
        assert_same_module(rnnfast.load(path), module)

    def test_torch_takes_it(self, path, rng):
        torch = pytest.importorskip("torch")
        oracle = pytest.importorskip("safetensors.torch")
        layer = make("lstm", num_layers=2, bidirectional=True)
        layer.save(path)
        other = torch.nn.LSTM(4, 5, num_layers=2, bidirectional=True)
        other.load_state_dict(oracle.load_file(path))
        for name, parameter in other.named_parameters():
            assert_same_bits(parameter.detach().numpy(), layer.parameters[name], name)

    def test_order_spaces_and_escapes_do_not_matter(self, path):
        layer = make("rnn_relu", num_layers=2)
        header, data = split(saved(layer, path.parent))
        entries = [
            f' "\\u{ord(name[0]):04x}{name[1:]}"\t:\n{{"data_offsets" : [ {begin} , {end} ],'
            f'"shape":[ {", ".join(map(str, entry["shape"]))}],\r\n "dtype":"F32"}} '
            for name, entry in reversed(header.items())
            if name != "__metadata__"
            for begin, end in [entry["data_offsets"]]
        ]
        strings = ",".join(f'"{k}" : "{v}"' for k, v in reversed(header["__metadata__"].items()))
        text = "{" + ",".join(entries) + ', "__metadata__": {' + strings + "} }\n"
        path.write_bytes(joined(text, data))
        assert_same_module(rnnfast.load(path), layer)


class TestPaths:
    @pytest.mark.parametrize("wrong", [5, None, ["layer"], 1.5])
    def test_of_another_type(self, wrong):
        error = f"path: expected a str or a path, got {type(wrong).__name__}"
        for call in (rnnfast.load, make("gru").save):
            with pytest.raises(TypeError, match=error):
                call(wrong)

    def test_of_every_type(self, tmp_path, monkeypatch):
        layer = make("gru")
        for path in (tmp_path / "ä", str(tmp_path / "b"), os.fsencode(tmp_path / "c")):
            layer.save(path)
            assert_same_module(rnnfast.load(path), layer)
        monkeypatch.chdir(tmp_path)
        layer.save("d")
        assert_same_module(rnnfast.load(tmp_path / "d"), layer)
        for wrong in (None, 5, layer):
            with pytest.raises(TypeError):
                layer.save(wrong)
            with pytest.raises(TypeError):
                rnnfast.load(wrong)

    def test_errors_of_the_system_pass_through(self, tmp_path):
        layer = make("gru")
        for path in (tmp_path / "none" / "file", tmp_path):
            with pytest.raises(OSError) as caught:
                layer.save(path)
            assert caught.value.filename in (str(path), None)
            with pytest.raises(OSError):
                rnnfast.load(path)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
    def test_a_write_that_fails_leaves_what_was_there(self, path, monkeypatch, error):
        old, new = make("gru"), make("lstm")
        old.save(path)

        def fails(source, target):
            assert os.path.getsize(source) > os.path.getsize(target)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(_safetensors.os, "replace", fails)
            with pytest.raises(type(error)):
                new.save(path)
        assert_same_module(rnnfast.load(path), old)
        assert list(path.parent.iterdir()) == [path]
        new.save(path)
        assert_same_module(rnnfast.load(path), new)

    @pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
    def test_nobody_else_reads_a_private_file_meanwhile(self, path, monkeypatch):
        make("gru").save(path)
        path.chmod(0o600)
        modes, replace = [], os.replace

        def seen(source, target):
            modes.append(stat.S_IMODE(os.stat(source).st_mode))
            replace(source, target)

        monkeypatch.setattr(_safetensors.os, "replace", seen)
        monkeypatch.setattr(_safetensors.shutil, "copymode", lambda source, target: None)
        make("lstm").save(path)
        assert modes == [0o600]

    @pytest.mark.skipif(sys.platform == "win32", reason="has other permissions and links")
    def test_permissions_links_and_devices_stay(self, tmp_path):
        plain, path, link = (tmp_path / name for name in ("plain", "file", "link"))
        plain.touch()
        layer = make("gru")
        layer.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
        path.chmod(0o640)
        link.symlink_to(path)
        make("rnn_tanh").save(link)
        layer.save(link)
        assert link.is_symlink()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert_same_module(rnnfast.load(path), layer)
        layer.save(os.devnull)
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
    def test_a_pipe_is_no_file(self, path):
        os.mkfifo(path)
        keeps_it_open = os.open(path, os.O_RDWR)
        with pytest.raises(ValueError, match="at least 8 bytes"):
            rnnfast.load(path)
        os.close(keeps_it_open)
