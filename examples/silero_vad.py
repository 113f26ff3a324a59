"""Silero VAD, a detector of speech, with its LSTM as a stream in float32, bfloat16 and int8.

    pip install . onnx onnxruntime && pip install --no-deps silero-vad
    python examples/silero_vad.py

The network reads 32 ms of sound at a time. It consists of a Fourier transform, four convolutions,
an LSTM of 128 units, whose state remembers earlier sound, and an output, which is the probability
that someone speaks. All but the LSTM is NumPy here, with the package's weights. ONNX Runtime runs
the package's model beside it.

The sound consists of vowels that this program makes, between noise and tones, or of WAV files.
Debian's alsa-utils has speech in /usr/share/sounds/alsa/*.wav, and `espeak-ng -w speech.wav "Some
text."` writes a file. The exit status is 1 if a probability differs from ONNX Runtime's by more
than ALLOWED.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

import rnnfast

# Found by the distribution's name, because the module has the same name as this file.
DATA = Path(str(distribution("silero-vad").locate_file("silero_vad/data")))
RATE = 16000  # samples a second
WINDOW, CONTEXT = 512, 64  # samples: new ones in a step, and the last old ones, read again
REFERENCE = "ONNX Runtime"
# The package's rule: speech begins at a probability of 0.5, and ends when it has stayed below 0.35
# for 100 ms.
THRESHOLD, THRESHOLD_OFF, MIN_SILENCE = 0.5, 0.35, 0.1 * RATE
# The greatest difference of a probability from ONNX Runtime's. These are at least twice the
# differences found in a quarter of an hour of sound.
ALLOWED = {"float32": 2e-5, "bfloat16": 0.06, "int8": 0.15}
BLOCK = 32  # the windows that one detector reads before the next detector reads them
# Resonances of the mouth in Hz, for men (Peterson & Barney 1952, table II), and their widths.
VOWELS = {
    "heed": (270, 2290, 3010),
    "head": (530, 1840, 2480),
    "hod": (730, 1090, 2440),
    "hawed": (570, 840, 2410),
    "who'd": (300, 870, 2240),
}
BANDWIDTHS = (60, 90, 130)

# The index of sample t of frame n of the Fourier transform. Samples are mirrored past the end.
PLACES = 128 * np.arange(4)[:, None] + np.arange(256)
FRAMES = np.where(PLACES < WINDOW + CONTEXT, PLACES, 2 * (WINDOW + CONTEXT - 1) - PLACES)


class Network:
    """The network without its LSTM."""

    def __init__(self, tensors: dict[str, NDArray]) -> None:
        self.transform = tensors["model.stft.forward_basis_buffer"][:, 0].T.copy()  # (256, 2*129)
        self.layers = []
        for n, stride in enumerate((1, 2, 2, 1)):
            name = f"model.encoder.{n}.reparam_conv"
            kernel = tensors[f"{name}.weight"].transpose(2, 1, 0)  # (3, inputs, outputs)
            kernel = kernel.reshape(-1, kernel.shape[2])
            self.layers.append((kernel, tensors[f"{name}.bias"], stride))
        self.out = tensors["model.decoder.decoder.2.weight"].reshape(-1)
        self.bias = float(tensors["model.decoder.decoder.2.bias"][0])

    def features(self, samples: NDArray) -> NDArray:
        """The input of the LSTM (128,), from CONTEXT + WINDOW samples."""
        real, imaginary = np.split(samples[FRAMES] @ self.transform, 2, axis=1)
        x = np.sqrt(real * real + imaginary * imaginary)  # (time, channels)
        for kernel, bias, stride in self.layers:
            padded = np.zeros((len(x) + 2, x.shape[1]), np.float32)
            padded[1:-1] = x
            taps = [padded[k : k + len(x) : stride] for k in range(3)]
            x = np.maximum(np.concatenate(taps, axis=1) @ kernel + bias, 0)
        return x[0]

    def probability(self, h: NDArray) -> float:
        return 1 / (1 + math.exp(-float(np.maximum(h, 0) @ self.out) - self.bias))


class Detector:
    """The network with its LSTM as a stream; a call reads a window and returns a probability."""

    def __init__(self, network: Network, lstm: rnnfast.LSTM, weights: str) -> None:
        self.network = network
        self.stream = lstm.stream(weights=weights)
        self.samples = np.zeros(CONTEXT + WINDOW, np.float32)
        self.h = np.empty(self.stream.output_size, np.float32)

    def features(self, window: NDArray) -> NDArray:
        self.samples[:CONTEXT] = self.samples[-CONTEXT:]
        self.samples[CONTEXT:] = window
        return self.network.features(self.samples)

    def step(self, features: NDArray) -> NDArray:
        return self.stream.step(features, out=self.h)

    def __call__(self, window: NDArray) -> float:
        return self.network.probability(self.step(self.features(window)))


class OnnxDetector:
    """The network in ONNX Runtime on one thread, as in the package.

    It runs the package's model for whole sequences, one window at a time. This gives the same bits
    as the default model, in four fifths of the time.
    """

    def __init__(self) -> None:
        model = shape_inference.infer_shapes(onnx.load(DATA / "silero_vad_16k_sequence.onnx"))
        lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
        features = lstm.input[0]
        alone = onnx.utils.Extractor(model).extract_model([features, "h", "c"], lstm.output)
        self.network = self.start(model), "input"
        self.lstm = self.start(alone), features
        self.samples = np.zeros((1, CONTEXT + WINDOW), np.float32)
        self.state = [np.zeros((1, 1, 128), np.float32)] * 2

    @staticmethod
    def start(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, part: tuple[onnxruntime.InferenceSession, str], x: NDArray) -> NDArray:
        session, name = part
        h, c = self.state
        output, *self.state = session.run(None, {name: x, "h": h, "c": c})
        return output

    def step(self, features: NDArray) -> NDArray:
        return self.run(self.lstm, features.reshape(1, 1, -1))

    def __call__(self, window: NDArray) -> float:
        self.samples[:, :CONTEXT] = self.samples[:, -CONTEXT:]
        self.samples[:, CONTEXT:] = window
        return self.run(self.network, self.samples).item()


def make_detectors() -> dict[str, Detector | OnnxDetector]:
    # This model has torch's names and layouts. The package's safetensors file has the weights of
    # another training.
    graph = onnx.load(DATA / "silero_vad_16k_op15.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    lstm = rnnfast.LSTM(128, 128)
    names = lstm.parameters
    lstm.load_state_dict({k: tensors[f"model.decoder.rnn.{k.removesuffix('_l0')}"] for k in names})
    network = Network(tensors)
    detectors = {weights: Detector(network, lstm, weights) for weights in ALLOWED}
    return {**detectors, REFERENCE: OnnxDetector()}


def run_in_turn(
    calls: Mapping[str, Callable[[NDArray], Any]], inputs: Sequence[NDArray] | NDArray
) -> tuple[dict[str, list], dict[str, float]]:
    """The results of each call for the inputs in order, and its median microseconds for one."""
    results: dict[str, list] = {name: [] for name in calls}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for first in range(0, len(inputs), BLOCK):
        for name, call in calls.items():
            for x in inputs[first : first + BLOCK]:
                start = time.perf_counter()
                results[name].append(call(x))
                times[name].append(1e6 * (time.perf_counter() - start))
    return results, {name: float(np.median(taken)) for name, taken in times.items()}


def speech(probabilities: Sequence[float] | NDArray) -> NDArray:
    """Whether each window lies in speech, by the rule of the package's VADIterator."""
    decisions, speaking, quiet_since = [], False, None
    for n, probability in enumerate(probabilities):
        if probability >= THRESHOLD:
            speaking, quiet_since = True, None
        elif probability < THRESHOLD_OFF and speaking:
            quiet_since = n if quiet_since is None else quiet_since
            speaking = (n - quiet_since) * WINDOW < MIN_SILENCE
        decisions.append(speaking)
    return np.array(decisions)


def make_vowels(rng: np.random.Generator, seconds: float, pitch: float) -> NDArray:
    """Syllables of one voice: the harmonics of its pitch, filtered by the resonances."""
    t = np.arange(int(seconds * RATE)) / RATE
    ends = np.cumsum(rng.uniform(0.14, 0.26, size=int(seconds / 0.14) + 1))
    starts = np.concatenate([[0], ends[:-1]])
    vowels = rng.choice(list(VOWELS.values()), size=len(ends))
    resonances = [np.interp(t, (starts + ends) / 2, column) for column in vowels.T]
    frequency = pitch * (1.1 - 0.2 * t / seconds + 0.1 * np.sin(2 * np.pi * 2.3 * t))
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    sound = np.zeros(len(t))
    for harmonic in range(1, int(4000 / frequency.max()) + 1):
        s = 1j * harmonic * frequency
        tone = np.exp(1j * harmonic * phase) / harmonic
        for centre, width in zip(resonances, BANDWIDTHS, strict=True):
            tone *= centre**2 / (s * s + width * s + centre**2)
        sound += tone.imag
    syllable = np.searchsorted(ends, t)
    sound *= np.sqrt(np.sin(np.pi * (t - starts[syllable]) / (ends - starts)[syllable]))
    return sound / sound.std()


def make_sound(seed: int, phrases: int = 12) -> NDArray:
    """Phrases of several voices (N,), each after a pause with a hiss, a louder noise, or a tone."""
    rng = np.random.default_rng(seed)
    parts = []
    for n in range(phrases):
        t = np.arange(int(rng.uniform(0.8, 1.6) * RATE)) / RATE
        pauses = 0 * t, 0.3 * rng.standard_normal(len(t)), 0.5 * np.sin(2 * np.pi * 440 * t)
        parts += [pauses[n % 3], make_vowels(rng, rng.uniform(1.5, 2.5), rng.uniform(90, 220))]
    sound = np.concatenate(parts)
    return 0.1 * sound + 0.003 * rng.standard_normal(len(sound))


def read_sound(path: Path) -> NDArray:
    """The samples (N,), in -1..1 and at RATE, of a WAV file with one channel of 16 bits."""
    try:
        with wave.open(str(path)) as file:
            form, rate = (file.getnchannels(), file.getsampwidth()), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        sys.exit(f"{path}: expected a WAV file, got {error!r}")
    if form != (1, 2) or not data:
        sys.exit(f"{path}: expected samples of one channel and 16 bits")
    sound = np.frombuffer(data, "<i2") / 32768
    length = round(len(sound) * RATE / rate)
    # The Fourier transform converts the rate, and keeps only the frequencies that both rates have.
    return np.fft.irfft(np.fft.rfft(sound), length) * (length / len(sound))


def split(sound: NDArray) -> NDArray:
    """The windows (N, WINDOW) of a sound; zeros fill up the last one."""
    return np.pad(sound, (0, -len(sound) % WINDOW)).reshape(-1, WINDOW).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run Silero VAD with its LSTM as a stream in three precisions."
    )
    parser.add_argument("wav", type=Path, nargs="*", help="16 bits mono (default: vowels are made)")
    parser.add_argument("--seed", type=int, default=0, help="of the vowels (default: 0)")
    options = parser.parse_args()
    pause = np.zeros(RATE)
    sounds = [part for path in options.wav for part in (pause, read_sound(path))]
    windows = split(np.concatenate(sounds) if sounds else make_sound(options.seed))

    detectors = make_detectors()
    heard, times = run_in_turn(detectors, windows)
    # The LSTM alone, from the start of the sound again.
    detectors = make_detectors()
    features = [detectors["float32"].features(window) for window in windows]
    steps = {name: detector.step for name, detector in detectors.items()}
    _, step_times = run_in_turn(steps, features)

    reference = np.array(heard.pop(REFERENCE))
    spoken, in_speech = reference >= THRESHOLD, speech(reference)
    print(f"{len(windows)} windows of 32 ms, {in_speech.mean():.0%} of them in speech")
    print(f"{'':32}LSTM alone    LSTM    largest     windows decided otherwise")
    print(f"{'':17}us a window       us     KiB      error    by p >= 0.5    as speech")
    correct = True
    for name, allowed in ALLOWED.items():
        got = np.array(heard[name])
        error = np.abs(got - reference).max()
        correct &= bool(error <= allowed)  # False for NaN
        by_threshold, as_speech = (got >= THRESHOLD) != spoken, speech(got) != in_speech
        print(
            f"{name:14}{times[name]:14.1f}{step_times[name]:13.2f}"
            f"{detectors[name].stream.nbytes / 1024:8.0f}{error:11.1e}"
            f"{by_threshold.sum():15}{as_speech.sum():13}"
        )
    print(f"{REFERENCE:14}{times[REFERENCE]:14.1f}{step_times[REFERENCE]:13.2f}")
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
