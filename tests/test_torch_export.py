"""`torch.export`, by a file and back."""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")

from torch.export import Dim  # noqa: E402
from torch_graphs import BATCH, DERIVATIVE, SHAPES, VALUE, inputs, taggers  # noqa: E402
from torch_twins import OUTPUT, assert_like, state_for, twins  # noqa: E402

# On other backends the exporter meets torch.nn's own implementation, which it refuses to trace.
pytestmark = [
    pytest.mark.usefixtures("native", "fresh_compiler"),
    pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:.*is deprecated"),
]


def saved_and_loaded(program):
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm_projected"])
def test_export(kind, strict, dtype):
    """For any T and B, by a file and back."""
    ours, theirs = twins(kind, dtype=dtype, num_layers=2, bidirectional=True)
    ours.eval(), theirs.eval()
    shapes = ({0: Dim("T", min=2), 1: Dim("B", min=2)},)
    given = (inputs(kind).to(dtype),)
    program = torch.export.export(ours, given, dynamic_shapes=shapes, strict=strict)
    for run in (program.module(), saved_and_loaded(program)):
        for steps, batch in SHAPES[:3]:
            x = inputs(kind, steps, batch).to(dtype)
            assert_like(run(x), theirs(x), VALUE if dtype is torch.float32 else OUTPUT[dtype])


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_a_cell(strict):
    ours, theirs = twins("lstm_cell")
    x, state = inputs("lstm_cell"), state_for(theirs, BATCH)
    run = saved_and_loaded(torch.export.export(ours, (x, state), strict=strict))
    assert_like(run(x, state), theirs(x, state), VALUE)


@pytest.mark.skipif(not hasattr(Dim, "AUTO"), reason="torch before 2.5 wants dimensions by name")
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_a_model(strict):
    ours, theirs = taggers()
    x = inputs("gru")
    program = torch.export.export(
        ours, (x,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},), strict=strict
    )
    x = inputs("gru", 6, 2)
    assert_like(saved_and_loaded(program)(x), theirs(x), VALUE)


@pytest.mark.parametrize("strict", [False, True])
def test_a_program_exported_without_gradients_runs_with_them_enabled(strict):
    """As a user exports, by `no_grad`, and calls it later; and the other way round."""
    ours, theirs = twins("gru")
    x = inputs("gru")
    with torch.no_grad():
        program = torch.export.export(ours, (x,), strict=strict)
    assert_like(program.module()(x), theirs(x), VALUE)
    program = torch.export.export(ours, (x,), strict=strict)
    run = program.module()
    with torch.no_grad():
        assert_like(run(x), theirs(x), VALUE)
    run(x)[0].sum().backward()
    theirs(x)[0].sum().backward()
    for (name, got), (_, want) in zip(
        run.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert_like(got.grad, want.grad, DERIVATIVE, name)
