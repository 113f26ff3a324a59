"""What `accelerate` leaves alone, and what `report` says of it and of the rest."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  after torch is known to be there
from torch.nn.utils import parametrize  # noqa: E402
from torch_models import RECURRENT, Scaled, everywhere  # noqa: E402

import rnnfast  # noqa: E402
import rnnfast.torch as rt  # noqa: E402

scripting = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


class Subclass(nn.LSTM):
    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return output + 1, state


def test_subclasses_are_left():
    class OfBase(nn.RNNBase):
        pass

    model = nn.Sequential(Subclass(3, 4), OfBase("GRU", 4, 4), nn.GRU(4, 4))
    parametrize.register_parametrization(model[0], "weight_hh_l0", Scaled())
    x = torch.randn(5, 3)
    want = model[0](x)[0]
    rt.accelerate(model)
    assert isinstance(model[0], Subclass)
    assert torch.equal(model[0](x)[0], want)
    assert type(model[1]) is OfBase
    left, base, swapped = rt.report(model)
    assert not left.accelerated and "subclass of torch.nn.LSTM" in left.reason
    assert not base.accelerated and "none of torch.nn's" in base.reason
    assert swapped.accelerated


@scripting
def test_scripted_modules_are_left():
    scripted, x = torch.jit.script(nn.GRUCell(3, 4)), torch.randn(5, 3)
    want = scripted(x)
    model = rt.accelerate(nn.Sequential(scripted, nn.GRU(4, 4)))
    assert model[0] is scripted
    assert torch.equal(scripted(x), want)
    first, second = rt.report(model)
    assert (first.name, first.module, first.accelerated) == ("0", "GRUCell", False)
    assert "torch.jit.script" in first.reason
    assert second.accelerated


def test_report_before_and_after(native):
    model, _ = everywhere()
    before = rt.report(model)
    assert [entry.name for entry in before] == RECURRENT
    assert {entry.reason for entry in before} == {"accelerate has not been called"}
    assert not any(entry.accelerated for entry in before)
    after = rt.report(rt.accelerate(model))
    assert [(entry.name, entry.module) for entry in after] == [
        (name, type(model.get_submodule(name)).__name__) for name in RECURRENT
    ]
    assert all(entry.accelerated and not entry.reason for entry in after)
    lines = str(after).splitlines()
    assert lines[0] == "first: LSTM: accelerated"
    assert len(lines) == len(RECURRENT)
    assert str(rt.report(nn.LSTM(1, 1))).startswith("(model): LSTM: left")
    assert str(rt.report(nn.Linear(1, 1))) == "no recurrent modules"


def test_a_dtype_without_kernels_is_reported_and_runs_by_torch(native):
    torch.manual_seed(0)
    theirs = nn.LSTM(3, 4, dtype=torch.float16)
    ours, x = rt.accelerate(copy.deepcopy(theirs)), torch.randn(5, 3).half()
    (entry,) = rt.report(ours)
    assert entry.accelerated
    assert "float16" in entry.reason
    assert torch.equal(ours(x)[0], theirs(x)[0])
    for change in (ours.float, ours.bfloat16):
        assert rt.report(change())[0].reason == ""


def test_a_device_without_kernels_is_reported(native):
    ours = rt.accelerate(nn.GRU(3, 4, device="meta"))
    assert "meta" in rt.report(ours)[0].reason
    assert ours(torch.empty(5, 3, device="meta"))[0].shape == (5, 4)


def test_without_the_kernels_it_says_so(keep_backend):
    rnnfast.set_backend("numpy")
    torch.manual_seed(0)
    theirs, x = nn.LSTM(3, 4), torch.randn(5, 3)
    want = theirs(x)[0]
    ours = rt.accelerate(theirs)
    assert "kernels are not in use" in rt.report(ours)[0].reason
    assert torch.equal(ours(x)[0], want)
