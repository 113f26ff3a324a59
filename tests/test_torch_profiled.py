"""What torch's profilers and its script compiler tell of modules that run by the kernels."""

from __future__ import annotations

import pytest
from torch_modules import CELLS, LAYERS, assert_same_gradients, flat, inputs_for, rt, twins

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("native")


def run(module, given):
    return flat(module(*given))


def names_of(function):
    """How often each of rnnfast's passes is in a profile."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    found = {event.key: event.count for event in profile.key_averages()}
    return {name: count for name, count in found.items() if name.startswith("rnnfast::")}


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_passes_are_in_the_profile(kind):
    module = twins(kind)[0]
    given = inputs_for(module, states=False)
    with torch.no_grad():
        want = run(module, given)
        for _ in range(2):
            assert sum(names_of(lambda: run(module, given)).values()) == 1
        again = run(module, given)
    assert all(map(torch.equal, again, want))

    def train():
        sum(y.sum() for y in run(module, given)).backward()

    train()
    unprofiled = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    found = names_of(train)
    assert found["rnnfast::forward"] == 1
    assert sum(count for name, count in found.items() if "backward" in name) >= 1
    profiled = {name: p.grad for name, p in module.named_parameters()}
    assert_same_gradients(profiled, unprofiled, "float32")
    with torch.no_grad():
        assert not names_of(lambda: None)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_script_says_what_to_do(kind):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), twins(kind)[0])
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"call rnnfast\.torch\.restore\(model\) before"):
            torch.jit.script(model)
    rt.restore(model)
    if kind != "lstm_projected":
        torch.jit.script(model[1])
