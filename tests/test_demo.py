"""The demo: its model's gradients, its training, and its command."""

import io
import math
import re
import sys

import numpy as np
import pytest

from rnnfast import _backend
from rnnfast.demo import CharModel, Text, cli, evaluate, main, train, training
from rnnfast.demo.gradients import gradient_norms
from rnnfast.demo.model import CELLS, cross_entropy
from rnnfast.demo.text import python_topics
from rnnfast.demo.training import CLIP, Adam, clip_norm

SMALL = "The quick brown fox jumps over the lazy dog. " * 60
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(SMALL)


def small_model(text: Text, cell: str = "lstm", seed: int = 0) -> CharModel:
    return CharModel(cell, len(text.characters), 16, seed)


@pytest.fixture
def short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that does not read all of the real text."""
    monkeypatch.setattr(cli, "python_topics", lambda: Text(SMALL))


def test_the_held_out_tenth_is_not_trained_on() -> None:
    text = Text("abcdefghij" * 5 + "klmno" * 10)
    assert text.decode(text.train) + text.decode(text.held_out) == "abcdefghij" * 5 + "klmno" * 10
    assert text.held_out.size == 10
    np.testing.assert_array_equal(text.encode("abo"), [0, 1, 14])


def test_training_reads_the_training_text_only(text: Text) -> None:
    seen = set()

    class Spy(CharModel):
        def gradients(self, ids, targets, state):
            seen.update(ids.ravel(), targets.ravel())
            return super().gradients(ids, targets, state)

    ids = text.train.copy()
    held_out_only = len(text.characters)
    whole = np.concatenate([ids, np.full(text.held_out.size, held_out_only)])
    train(Spy("rnn", held_out_only + 1, 16), whole[: ids.size], updates=8)
    assert seen == set(ids)


def test_the_real_text_is_the_one_that_is_promised() -> None:
    text = python_topics()
    assert 300_000 < text.train.size + text.held_out.size < 800_000
    assert text.held_out.size == math.ceil((text.train.size + text.held_out.size) / 10)
    assert set("The \n") <= set(text.characters)


def test_cross_entropy_is_that_of_the_definition() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (5, 7))
    targets = random.integers(0, 7, 5)

    def loss_of(values: np.ndarray) -> float:
        softmax = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
        return float(-np.log(softmax[np.arange(5), targets]).mean())

    loss, gradient = cross_entropy(logits.copy(), targets)
    assert loss == pytest.approx(loss_of(logits), rel=1e-12)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-6
        slope = (loss_of(logits + step) - loss_of(logits - step)) / 2e-6
        assert gradient[place] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("cell", CELLS)
def test_the_models_gradients_are_slopes(text: Text, cell: str) -> None:
    model = small_model(text, cell)
    ids = text.train[:39].reshape(13, 3)
    _, _, state = model.gradients(ids, ids, None)
    _, gradients, _ = model.gradients(ids[:-1], ids[1:], state)
    random = np.random.default_rng(1)
    with model.edit() as parameters:
        assert set(gradients) == set(parameters)
    for name, gradient in gradients.items():
        aside = random.standard_normal(gradient.shape)
        direction = gradient / np.linalg.norm(gradient) + aside / np.linalg.norm(aside)
        losses = []
        for step in (1e-2, -1e-2):
            with model.edit() as parameters:
                kept = parameters[name].copy()
                parameters[name][...] += step * direction
            losses.append(model.gradients(ids[:-1], ids[1:], state)[0])
            with model.edit() as parameters:
                parameters[name][...] = kept
        slope = (losses[0] - losses[1]) / 2e-2
        # float32 leaves 1e-7 / 1e-2 of a difference of losses.
        assert slope == pytest.approx(float(np.vdot(gradient, direction)), rel=0.01, abs=5e-5), name


def test_adams_first_step_has_the_size_of_the_rate() -> None:
    parameters = {"w": np.zeros(3, np.float32)}
    adam = Adam()
    adam.update(parameters, {"w": np.array([5, -0.01, 1], np.float32)}, rate=0.1)
    np.testing.assert_allclose(parameters["w"], [-0.1, 0.1, -0.1], rtol=1e-5)
    adam.update(parameters, {"w": np.array([5, -0.01, 0], np.float32)}, rate=0.1)
    m = (0.9 * 0.1) / (1 - 0.9**2)
    v = (0.99 * 0.01) / (1 - 0.99**2)
    np.testing.assert_allclose(parameters["w"], [-0.2, 0.2, -0.1 - 0.1 * m / v**0.5], rtol=1e-5)


def test_clipping_shortens_long_gradients_only() -> None:
    gradients = {"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}
    assert clip_norm(gradients, CLIP) == 5
    np.testing.assert_allclose(gradients["a"], [0.6])
    np.testing.assert_allclose(gradients["b"], [[0, 0.8]])
    assert clip_norm(gradients, 2.0) == pytest.approx(1)
    np.testing.assert_allclose(gradients["a"], [0.6])


@pytest.mark.parametrize("cell", CELLS)
def test_losses_fall_from_those_of_a_guess(text: Text, cell: str) -> None:
    model = small_model(text, cell)
    done = train(model, text.train, updates=40)
    guess = math.log2(len(text.characters))
    assert done.losses[0] == pytest.approx(guess, abs=0.3)
    assert done.losses[-1] < 0.9 * guess
    assert evaluate(model, text.held_out) < 0.9 * guess


def test_the_first_losses_depend_on_neither_time_nor_number_of_updates(text, monkeypatch) -> None:
    monkeypatch.setattr(training, "WARM_UP", 4)
    losses = train(small_model(text), text.train, updates=8).losses
    assert len(losses) == 8
    assert train(small_model(text), text.train, updates=8).losses == losses
    # The rate of the fourth update is the last one that is the same for all.
    assert train(small_model(text), text.train, updates=5).losses == losses[:5]
    longer = train(small_model(text), text.train, updates=12).losses
    assert longer[:5] == losses[:5] and longer[6:8] != losses[6:8]
    timed = train(small_model(text), text.train, seconds=0.05).losses
    common = min(len(timed), 5)
    assert timed[:common] == losses[:common]
    assert train(small_model(text, seed=1), text.train, updates=3).losses != losses[:3]


def test_training_wants_an_end(text: Text) -> None:
    with pytest.raises(ValueError, match="expected seconds or updates"):
        train(small_model(text), text.train)


@pytest.mark.parametrize("size", [2, 17, 100, 501])
def test_evaluation_reads_every_character_once(text: Text, size: int) -> None:
    """One stream, and sixteen, against a plain loop over the characters."""
    model = small_model(text)
    ids = text.held_out if size > text.held_out.size else text.train[:size]
    for streams in (1, 16):
        width = math.ceil((ids.size - 1) / streams)
        total, state = 0.0, None
        for place in range(ids.size - 1):
            state = None if place % width == 0 else state
            output, state = model.layer(model.embedding[ids[place : place + 1, None]], state)
            total += cross_entropy(model.logits(output[0]), ids[place + 1 : place + 2])[0]
        want = total / (ids.size - 1) / math.log(2)
        assert evaluate(model, ids, streams) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_gradient_norms_are_those_of_one_backward_pass(text: Text, cell: str) -> None:
    """dL/dh of the state that a tape starts from, for a few distances and one place."""
    model = small_model(text, cell)
    lead_in, rows = 50, 32
    for distance in (0, 1, 12):
        norms = gradient_norms(model, text.train, distance)
        assert norms.shape == (distance + 1,)
        length = lead_in + distance
        starts = np.arange(rows) * (text.train.size - length - 1) // rows
        read = text.train[starts + np.arange(length + 1)[:, None]]
        x = model.embedding[read[:-1]]
        _, state = model.layer(x[:lead_in])
        if not distance:
            continue
        tape = model.layer.record(x[lead_in:], state)
        _, d_logits = cross_entropy(model.logits(tape.output[-1]), read[-1])
        d_output = np.zeros_like(tape.output)
        d_output[-1] = rows * (d_logits @ model.out_weight)
        d_state = tape.backward(d_output).state
        d_h = d_state[0] if isinstance(d_state, tuple) else d_state
        assert norms[distance] == pytest.approx(np.linalg.norm(d_h, axis=-1).mean(), rel=1e-4)
        assert norms[0] == pytest.approx(np.linalg.norm(d_output[-1], axis=-1).mean(), rel=1e-4)


def test_samples_follow_the_model_and_the_seed(text: Text) -> None:
    model = small_model(text)
    first = model.sample(text.encode("The "), 40, seed=1)
    np.testing.assert_array_equal(first, model.sample(text.encode("The "), 40, seed=1))
    assert not np.array_equal(first, model.sample(text.encode("The "), 40, seed=2))
    model.out_bias[text.encode("x")] = 1000
    assert text.decode(model.sample(text.encode("The "), 5)) == "xxxxx"


@pytest.mark.parametrize("cell", CELLS)
def test_the_command_reports_and_writes_losses(short_text, tmp_path, capsys, cell: str) -> None:
    losses = tmp_path / "losses.txt"
    arguments = ["--cell", cell, "--hidden", "16", "--updates", "3", "--no-plot"]
    assert main([*arguments, "--losses", str(losses)]) == 0
    out = capsys.readouterr().out
    assert "The " in out
    lost = re.search(r"against float32 weights: (.*) in bfloat16, (.*) in int8", out)
    assert lost and all(abs(float(bits)) < 0.03 for bits in lost.groups())
    assert re.search(r"held-out bits per character \d\.\d{3}   updates 3   characters/s ", out)
    model = CharModel(cell, len(Text(SMALL).characters), 16)
    expected = train(model, Text(SMALL).train, updates=3).losses
    np.testing.assert_allclose(np.loadtxt(losses), expected, rtol=1e-8)
    assert not list(tmp_path.glob("*.png"))


def test_the_command_learns_the_same_on_every_backend(
    short_text, tmp_path, capsys, keep_backend
) -> None:
    losses = {}
    for name in _backend.BACKENDS:
        path = tmp_path / f"{name}.txt"
        arguments = ["--backend", name, "--hidden", "24", "--updates", "20", "--no-plot"]
        try:
            _backend.load(name)
        except _backend.MissingBackendError:
            continue
        assert main([*arguments, "--losses", str(path)]) == 0
        assert f" on the {name} backend: " in capsys.readouterr().out
        losses[name] = np.loadtxt(path)
        assert losses[name].shape == (20,)
    for name, got in losses.items():
        np.testing.assert_allclose(got, losses["numpy"], rtol=0, atol=1e-4, err_msg=name)


def test_the_command_reads_the_real_text(tmp_path, capsys) -> None:
    assert main(["--cell", "rnn", "--hidden", "8", "--updates", "2", "--no-plot"]) == 0
    text = python_topics()
    assert f"{text.train.size:,} characters to train on" in capsys.readouterr().out


def test_the_command_draws(short_text, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.png"
    assert main(["--hidden", "16", "--updates", "2", "--output", str(path)]) == 0
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size < 150_000
    assert str(path) in capsys.readouterr().out


def test_the_command_does_without_what_is_not_installed(
    short_text, tmp_path, capsys, monkeypatch
) -> None:
    for package in cli.WITHOUT:
        monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / "figure.png"
    assert main(["--hidden", "16", "--updates", "2", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    for package in cli.WITHOUT:
        said = f"{package} is not installed; in rnnfast's source folder "
        assert f'{said}pip install ".[demo]" brings it.' in out
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cell", "cnn"], "invalid choice: 'cnn'"),
        (["--backend", "abacus"], "invalid choice: 'abacus'"),
        (["--hidden", "0"], "--hidden: expected a whole number above 0, got '0'"),
        (["--updates", "1.5"], "--updates: expected a whole number above 0, got '1.5'"),
        (["--seed", "-1"], "--seed: expected a whole number, 0 or above, got '-1'"),
        (["--seconds", "0"], "--seconds: expected a number above 0, got '0'"),
        (["--seconds", "nan"], "--seconds: expected a number above 0, got 'nan'"),
        (["--seconds", "soon"], "--seconds: expected a number above 0, got 'soon'"),
        (["--output", "no/such/folder.png"], "--output: expected a file in a folder that exists"),
        (["--losses", "."], "--losses: expected a file in a folder that exists, got '.'"),
    ],
)
def test_a_bad_argument_is_named(capsys, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_backend_is_named(capsys, monkeypatch) -> None:
    def missing(name: str) -> None:
        raise RuntimeError(f"backend: {name} is not available: no module")

    monkeypatch.setattr(cli.rnnfast, "set_backend", missing)
    with pytest.raises(SystemExit) as stop:
        main(["--backend", "numba"])
    assert stop.value.code == 2
    assert "backend: numba is not available: no module" in capsys.readouterr().err


def test_blas_has_one_thread_while_the_command_runs(short_text, monkeypatch) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas_threads() -> list[int]:
        pools = threadpoolctl.threadpool_info()
        return [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]

    during = []
    monkeypatch.setattr(
        cli,
        "evaluate",
        lambda *args, **options: during.append(blas_threads()) or evaluate(*args, **options),
    )
    before = blas_threads()
    main(["--hidden", "16", "--updates", "1", "--no-plot"])
    assert during and all(threads == [1] * len(before) for threads in during)
    assert blas_threads() == before


def test_text_is_printed_in_any_encoding(monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert cli._printable("a \u201cb\u201d \u2026") == "a ?b? ?"


@pytest.mark.parametrize("option", ["--output", "--losses"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_file_that_cannot_be_written_is_refused_before_training(
    option, exists, monkeypatch, tmp_path, capsys
) -> None:
    path = tmp_path / "file"
    if exists:
        path.touch()
    refused = path if exists else tmp_path
    monkeypatch.setattr(cli.os, "access", lambda asked, mode: asked != refused)
    monkeypatch.setattr(cli, "python_topics", lambda: pytest.fail("has begun"))
    with pytest.raises(SystemExit) as stop:
        main([option, str(path)])
    assert stop.value.code == 2
    assert f"{option}: expected a file that can be written, got '{path}'" in capsys.readouterr().err


def test_help_shows_the_defaults_that_say_something() -> None:
    text = " ".join(cli.parser().format_help().split())
    assert "its hidden size (default: 192)" in text and "(default: rnnfast-demo.png)" in text
    assert "default: None" not in text and "default: False" not in text
