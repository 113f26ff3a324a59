"""Trains an LSTM to forecast sunspots with torch.nn, and with rnnfast.torch by one more line.

    pip install ".[examples]" && python examples/torch_forecast.py

Both models start from the same seed and see the same data, so their losses are equal up to
rounding; their times are not. The series of mean sunspot numbers in the years 1700 to 2008 is part
of statsmodels. The exit status is 1 if the losses differ by more than TOLERANCE.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from statsmodels.datasets import sunspots

import rnnfast.torch as rt

TEST_YEARS = 60  # the last years, which training does not see
WINDOW = 60  # the years in a training sequence; a cycle of the sun takes about 11
WARM_UP = 3  # the epochs that are not timed
# The greatest relative difference of the losses. Float32 rounds at 6e-8, and training amplifies
# that: with the first seed the difference is 5e-6 after 100 epochs and 5e-4 after 150. After 250
# epochs the two models are no longer comparable.
TOLERANCE = 1e-4
COLOURS = {"torch.nn": "#D55E00", "rnnfast.torch": "#0072B2"}  # Okabe & Ito 2008
GREY = "#595959"


class Forecaster(torch.nn.Module):
    """Reads values (T, B, 1) and forecasts, at each step, the value of the next step."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(1, hidden, num_layers=2)
        self.out = torch.nn.Linear(hidden, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(values)
        return values + self.out(output)


def make_models(hidden: int, seed: int) -> dict[str, Forecaster]:
    models = {}
    for name in COLOURS:
        torch.manual_seed(seed)
        models[name] = Forecaster(hidden)
    rt.accelerate(models["rnnfast.torch"])  # the one line
    return models


def train(
    models: dict[str, Forecaster], values: torch.Tensor, epochs: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Trains the models in turn; returns the losses and the seconds of their epochs."""
    windows = values.unfold(0, WINDOW + 1, 1).T.unsqueeze(2)  # (WINDOW + 1, B, 1), a step apart
    x, target = windows[:-1].contiguous(), windows[1:].contiguous()
    optimizers = {k: torch.optim.Adam(m.parameters(), lr=0.003) for k, m in models.items()}
    losses: dict[str, list[float]] = {name: [] for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(epochs):
        for name, model in models.items():
            start = time.perf_counter()
            loss = torch.nn.functional.mse_loss(model(x), target)
            optimizers[name].zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers[name].step()
            losses[name].append(loss.item())
            seconds[name].append(time.perf_counter() - start)
    return losses, seconds


def rms(error: torch.Tensor) -> float:
    return error.square().mean().sqrt().item()


def draw(
    path: Path,
    losses: dict[str, list[float]],
    milliseconds: dict[str, float],
    years: torch.Tensor,
    series: torch.Tensor,
    forecasts: dict[str, torch.Tensor],
) -> None:
    """Writes a plot of the losses and of the forecasts for the last years to `path`."""
    drawing = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    left, right = drawing.subplots(1, 2)
    right.plot(years, series, ".", color=GREY, label="observed")
    # The second line is dashed: it is almost equal to the first one, and would hide it.
    for (name, colour), style in zip(COLOURS.items(), ["-", "--"], strict=True):
        epochs = range(1, len(losses[name]) + 1)
        label = f"{name}, {milliseconds[name]:.0f} ms an epoch"
        left.plot(epochs, losses[name], style, color=colour, label=label)
        right.plot(years, forecasts[name], style, color=colour, label=name)
    left.set_title("Training, from the same seed", loc="left", fontsize=11)
    left.set(xlabel="epoch", ylabel="mean squared error, scaled", ylim=(0, None))
    right.set_title("A year ahead, in years not trained on", loc="left", fontsize=11)
    right.set(xlabel="year", ylabel="sunspot number", ylim=(None, 240))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    drawing.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Train an LSTM on sunspots with torch.nn and with rnnfast.torch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=100, help="updates of each model")
    parser.add_argument("--hidden", type=int, default=64, help="hidden size of the LSTM")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both")
    parser.add_argument("--seed", type=int, default=0, help="of the initial parameters")
    parser.add_argument("--plot", type=Path, default=Path("torch-forecast.png"), help="a PNG file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    data = sunspots.load_pandas().data
    years, series = (torch.tensor(data[key].to_numpy()) for key in ("YEAR", "SUNACTIVITY"))
    values = series.float()
    learned = values[:-TEST_YEARS]
    mean, scale = learned.mean(), learned.std()

    models = make_models(options.hidden, options.seed)
    losses, seconds = train(models, (learned - mean) / scale, options.epochs)

    test = values[-TEST_YEARS:]
    forecasts, milliseconds = {}, {}
    print(f"{'':24}final loss   ms an epoch   test error, sunspots")
    for name, model in models.items():
        with torch.no_grad():
            forecast = model((values[:-1].reshape(-1, 1, 1) - mean) / scale).flatten()
        forecasts[name] = (forecast * scale + mean)[-TEST_YEARS:]
        milliseconds[name] = 1e3 * median(seconds[name][WARM_UP:] or seconds[name])
        error = rms(forecasts[name] - test)
        print(f"{name:24}{losses[name][-1]:10.5f}{milliseconds[name]:14.1f}{error:15.1f}")
    for name, lag in [("the year before", 1), ("11 years before", 11)]:
        error = rms(values[-TEST_YEARS - lag : -lag] - test)
        print(f"{name:48}{error:15.1f}")

    draw(options.plot, losses, milliseconds, years[-TEST_YEARS:], series[-TEST_YEARS:], forecasts)
    want, got = (torch.tensor(losses[name], dtype=torch.float64) for name in COLOURS)
    difference = ((got - want).abs() / want).max().item()
    print(f"largest relative difference of the losses: {difference:.1e}, allowed {TOLERANCE:.0e}")
    print(f"wrote {options.plot}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
