"""What goes on around backward passes through `rnnfast.torch`: hooks, checkpoints, optimisers."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import TORCH, assert_close
from torch_modules import (
    CELLS,
    LAYERS,
    MODULES,
    TORCH_DTYPES,
    arrange,
    assert_same_gradients,
    assert_same_results,
    by_kernels,
    flat,
    gradients,
    inputs_for,
    loss,
    make,
    normal,
    rt,
    run,
    seed,
    twins,
)

torch = pytest.importorskip("torch")

F64 = TORCH_DTYPES["float64"]


@pytest.mark.parametrize("kind", MODULES)
def test_hooks_of_modules(kind):
    found = []
    pair = twins(kind, dtype=F64)
    for module in pair:
        seen = []

        def keep(tensors, seen=seen):
            seen.extend(t.detach().clone() for t in flat([t for t in tensors if t is not None]))

        module.register_forward_pre_hook(lambda m, args: (2 * args[0], *args[1:]))
        module.register_forward_hook(lambda m, args, out, keep=keep: keep([args[0], out]))
        module.register_full_backward_pre_hook(lambda m, d, keep=keep: keep(d))
        module.register_full_backward_hook(lambda m, dx, dy, keep=keep: keep(dx))
        tensors = [t.requires_grad_() for t in inputs_for(pair[1])]
        loss(run(module, tensors)).backward()
        found.append(seen)
        found[-1] += [t.grad for t in tensors]
    assert len(found[0]) > 4
    assert_same_results(*found, "float64", "backward")


def test_hooks_of_tensors():
    def five_times(parameter):
        parameter.grad.mul_(5)

    found = []
    pair = twins("lstm", dtype=F64)
    for module in pair:
        x = inputs_for(pair[1], states=False)[0].requires_grad_()
        y, (h, _) = module(x)
        y.register_hook(lambda d: 3 * d)
        h.retain_grad()
        module.weight_hh_l0.register_hook(lambda d: d.clamp(-0.1, 0.1))
        module.bias_ih_l0.register_post_accumulate_grad_hook(five_times)
        (y.sum() + h.pow(2).sum()).backward()
        found.append([x.grad, h.grad, *(p.grad for p in module.parameters())])
    assert_same_results(*found, "float64", "backward")


@pytest.mark.filterwarnings("ignore:Anomaly Detection|Error detected")
@pytest.mark.parametrize("kind", MODULES)
def test_anomaly_mode(kind):
    module = make(rt, kind, dtype=F64)
    x = inputs_for(module, states=False)[0].requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        flat(module(x))[0].sum().backward()
        assert x.grad.isfinite().all()
        with pytest.raises(RuntimeError, match="returned nan values"):
            (flat(module(x))[0] * torch.nan).sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", MODULES)
def test_checkpoint(kind, reentrant):
    options = {"num_layers": 2, "dropout": 0.5} if kind in LAYERS else {}
    pair = twins(kind, dtype=F64, **options)
    results, d_want = gradients(pair[1], inputs_for(pair[1]))
    own = [t.requires_grad_() for t in inputs_for(pair[1])]
    seed(11)
    with by_kernels():
        result = torch.utils.checkpoint.checkpoint(
            lambda *given: tuple(flat(pair[0](*arrange(*given)))), *own, use_reentrant=reentrant
        )
        loss(result).backward()
    assert_same_results(result, results, "float64")
    at = [*own, *pair[0].parameters()]
    assert_same_results([t.grad for t in at], list(d_want.values()), "float64", "backward")


@pytest.mark.parametrize("kind", MODULES)
def test_saved_tensors_hooks(kind, native):
    ours, theirs = twins(kind, dtype=F64)
    tensors = inputs_for(theirs)
    _, d_want = gradients(theirs, tensors)
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.detach().numpy().copy()

    with by_kernels():
        with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
            _, d_got = gradients(ours, tensors)
        with torch.autograd.graph.save_on_cpu():
            _, d_again = gradients(ours, tensors)
    assert_same_gradients(d_got, d_want, "float64")
    assert_same_gradients(d_again, d_want, "float64")
    # Cells keep their weights in what all steps share.
    parameters = () if kind.endswith("_cell") else ours.parameters()
    for tensor in (*tensors, *parameters):
        assert tensor.shape in packed


def test_one_parameter_of_two_modules():
    found = []
    for place in (rt, torch.nn):
        first, other = make(place, "lstm", 5, 5, dtype=F64), make(place, "lstm", 5, 5, dtype=F64)
        other.weight_hh_l0 = first.weight_hh_l0
        other.weight_ih_l0 = first.weight_hh_l0
        y, state = first(normal(4, 2, 5))
        loss(flat(other(y, state))).backward()
        both = torch.nn.ModuleList([first, other])
        found.append([p.grad for p in both.parameters()])
    assert len(found[0]) == 6
    assert_same_results(*found, "float64", "backward")


def test_gradients_add_up_over_calls():
    found = []
    pair = twins("gru", dtype=F64)
    for module in pair:
        for step in range(3):
            x = normal(4, 2, module.input_size, stream=step)
            loss(flat(module(x))).backward()
        found.append([p.grad for p in module.parameters()])
    assert_same_results(*found, "float64", "backward")


@pytest.mark.parametrize("kind", MODULES)
def test_training(kind):
    found = []
    pair = twins(kind, dtype=F64)
    for module in pair:
        optimizer, losses = torch.optim.Adam(module.parameters(), lr=0.05), []
        for step in range(5):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            x = normal(*inputs_for(module, states=False)[0].shape, stream=step)
            value = flat(module(x))[0].pow(2).mean()
            value.backward()
            optimizer.step()
            losses.append(value.detach())
        found.append([torch.stack(losses), *(p.detach() for p in module.parameters())])
    assert not np.allclose(found[0][0][0], found[0][0][-1])
    # Adam divides by the root of small squares, and each step starts from the last one's errors.
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e3 * TORCH["float64", "backward"])


@pytest.mark.parametrize("kind", CELLS)
def test_loops_of_cells(kind):
    found = []
    pair = twins(kind, dtype=F64)
    for module in pair:
        x, *states = (t.requires_grad_() for t in inputs_for(pair[1]))
        at, state, outputs = [x, *states], arrange(x, *states)[1], []
        for _ in range(9):
            state = module(x, state)
            outputs.append(flat(state)[0])
        result = torch.stack(outputs)
        found.append([result, *torch.autograd.grad(loss([result]), [*at, *module.parameters()])])
    assert_same_results(*found, "float64", "backward")
