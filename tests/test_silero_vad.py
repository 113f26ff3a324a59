"""examples/silero_vad.py: the probabilities and decisions of the package's model, on streams."""

from __future__ import annotations

import importlib.util
import re
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "silero_vad.py"

pytestmark = [
    pytest.mark.skipif(not EXAMPLE.is_file(), reason="the tests run without the examples"),
    pytest.mark.skipif(
        importlib.util.find_spec("silero_vad") is None,
        reason="silero-vad is not installed (pip install --no-deps silero-vad)",
    ),
]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("silero_vad_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def windows(example):
    return example.split(example.make_sound(seed=0))


@pytest.fixture(scope="module")
def detectors(example):
    return example.make_detectors()


@pytest.fixture(scope="module")
def probabilities(example, windows, detectors):
    """What each detector hears in the same 40 s."""
    results, times = example.run_in_turn(detectors, windows)
    assert all(time > 0 for time in times.values())
    return {name: np.array(heard) for name, heard in results.items()}


def test_the_sound_is_speech_and_is_not(example, probabilities) -> None:
    """So that there are decisions to agree on, either way, and changes from one to the other."""
    reference = probabilities[example.REFERENCE]
    assert np.mean(reference > 0.9) > 0.4 and np.mean(reference < 0.1) > 0.2
    in_speech = example.speech(reference)
    # As many as phrases: neither the noise nor the tone between them is taken for one.
    assert np.sum(in_speech[1:] & ~in_speech[:-1]) == 12


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_probabilities_and_decisions(example, probabilities, weights: str) -> None:
    got, reference = probabilities[weights], probabilities[example.REFERENCE]
    assert np.abs(got - reference).max() <= example.ALLOWED[weights]
    # All of them: no probability of this sound is within 0.008 of the threshold, or within 0.002
    # of that where speech ends.
    np.testing.assert_array_equal(got >= example.THRESHOLD, reference >= example.THRESHOLD)
    np.testing.assert_array_equal(example.speech(got), example.speech(reference))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_weights_are_rounded(probabilities, detectors, weights: str) -> None:
    assert detectors[weights].stream.weights == weights
    assert np.abs(probabilities[weights] - probabilities["float32"]).max() > 1e-3


def test_the_state_is_in_the_stream(example, windows, detectors, probabilities) -> None:
    """After the sound, both networks remember the same."""
    kept = detectors[example.REFERENCE].state
    for got, want in zip(detectors["float32"].stream.state, kept, strict=True):
        np.testing.assert_allclose(got.reshape(-1), want.reshape(-1), rtol=1e-3, atol=1e-3)
    # Without what came before, windows are heard otherwise.
    detector = example.make_detectors()["float32"]
    forgetful = []
    for window in windows:
        detector.stream.reset()
        forgetful.append(detector(window))
    assert np.abs(forgetful - probabilities["float32"]).mean() > 0.1


def test_the_lstm_alone_is_the_networks(example, windows) -> None:
    """What is timed as the step of ONNX Runtime is the same LSTM."""
    detectors = example.make_detectors()
    ours, theirs = detectors["float32"], detectors[example.REFERENCE]
    for window in windows[100:120]:
        features = ours.features(window)
        want = theirs.step(features).reshape(-1)
        np.testing.assert_allclose(ours.step(features), want, rtol=1e-4, atol=1e-5)


def test_speech_ends_after_silence(example) -> None:
    """Not below 0.5, but below 0.35 for 100 ms, which are 3.1 windows."""
    heard = [0.4, 0.5, 0.4, 0.3, 0.4, 0.6, 0.3, 0.4, 0.3, 0.3, 0.3, 0.4, 0.7]
    decided = [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1]
    np.testing.assert_array_equal(example.speech(heard), decided)


def write(path: Path, samples: np.ndarray, rate: int, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(32767 * samples).astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
def test_files_of_other_rates(example, tmp_path, rate: int) -> None:
    def tone(rate: int) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * 400 * np.arange(rate) / rate)

    sound = example.read_sound(write(tmp_path / "tone.wav", tone(rate), rate))
    np.testing.assert_allclose(sound, tone(example.RATE), atol=1e-4)
    if rate == 48000:  # what 16 kHz cannot hold is left out, not folded back
        high = np.cos(2 * np.pi * 9000 * np.arange(rate) / rate)
        assert np.abs(example.read_sound(write(tmp_path / "high.wav", high, rate))).max() < 1e-3


def test_the_program(example, tmp_path, windows, monkeypatch, capsys) -> None:
    """Its table, over a file of speech, and its status."""
    path = write(tmp_path / "speech.wav", windows[:128].reshape(-1), example.RATE)
    monkeypatch.setattr(sys, "argv", ["silero_vad.py", str(path)])
    assert example.main() == 0
    printed = capsys.readouterr().out
    first = re.match(r"(\d+) windows of 32 ms, (\d+)% of them in speech\n", printed)
    assert first and int(first[1]) == 128 + 32 and 40 < int(first[2]) < 80
    rows = {line.split("  ")[0]: line.split() for line in printed.splitlines()[3:]}
    assert list(rows) == [*example.ALLOWED, example.REFERENCE]
    assert rows["float32"][-2:] == ["0", "0"]
    assert 0 < float(rows["float32"][4]) < float(rows["bfloat16"][4]) < float(rows["int8"][4])
    monkeypatch.setitem(example.ALLOWED, "int8", 0.0)
    assert example.main() == 1


def test_other_files_are_refused(example, tmp_path) -> None:
    stereo = write(tmp_path / "stereo.wav", np.zeros(64), example.RATE, channels=2)
    empty = write(tmp_path / "empty.wav", np.zeros(0), example.RATE)
    for path in (stereo, empty):
        with pytest.raises(SystemExit, match=r"\.wav: expected samples of one channel and 16 bits"):
            example.read_sound(path)
    for path in (Path(__file__), tmp_path / "missing.wav"):
        with pytest.raises(SystemExit, match=rf"{path.name}: expected a WAV file, got "):
            example.read_sound(path)
