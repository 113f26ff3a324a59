"""Checks an installed rnnfast with NumPy alone: one LSTM against its equations, and its gradient.

Run it outside the source tree. `--backend native` wants the compiled module in use; the others
want none, and that the import says so exactly once.
"""

import argparse
import subprocess
import sys
import warnings

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, p):
    """Hochreiter & Schmidhuber 1997 with forget gates; gates in the order i, f, g, o."""
    h = c = np.zeros((x.shape[1], p["weight_hh_l0"].shape[1]))
    output = []
    for x_t in x:
        a = x_t @ p["weight_ih_l0"].T + h @ p["weight_hh_l0"].T
        i, f, g, o = np.split(a + p["bias_ih_l0"] + p["bias_hh_l0"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        output.append(h)
    return np.array(output)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True, choices=["native", "numba", "numpy"])
    wanted = parser.parse_args().backend

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import rnnfast

        rng = np.random.default_rng(0)
        x = rng.standard_normal((7, 3, 5))
        layer = rnnfast.LSTM(5, 9, dtype="float64", seed=0)
        output, _ = layer(x)
        layer(x)
    config = rnnfast.show_config()

    assert config["backend"] == wanted, config
    assert wanted == "native" or config["native"].startswith("missing"), config
    messages = [str(w.message) for w in caught]
    assert len(messages) == (0 if wanted == "native" else 1), messages

    parameters = layer.state_dict()
    np.testing.assert_allclose(output, lstm(x, parameters), rtol=0, atol=1e-13)

    stream, steps = layer.stream(batch_size=3), []
    for x_t in x:
        steps.append(stream.step(x_t))
    np.testing.assert_allclose(steps, output, rtol=0, atol=1e-13)

    d_output = rng.standard_normal(output.shape)
    grads = layer.record(x).backward(d_output)
    direction = {name: rng.standard_normal(p.shape) for name, p in parameters.items()}
    step = 1e-5
    ahead, behind = (
        lstm(x, {name: p + sign * step * direction[name] for name, p in parameters.items()})
        for sign in (1, -1)
    )
    numeric = np.sum(d_output * (ahead - behind)) / (2 * step)
    analytic = sum(np.sum(grads.parameters[name] * direction[name]) for name in parameters)
    np.testing.assert_allclose(analytic, numeric, rtol=1e-7)
    # The C library is part of the compiled install, and no part of the others.
    flags = subprocess.run([sys.executable, "-m", "rnnfast", "libs"], stdout=subprocess.PIPE)
    assert flags.returncode == (0 if wanted == "native" else 1), flags
    print(f"smoke test: {wanted} backend, Python {sys.version.split()[0]}: right")


if __name__ == "__main__":
    main()
