"""`accelerate(model, by_subclass=True)`: modules stay instances of what they were."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
from torch_modules import by_kernels

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  after torch is known to be there
from torch.nn.utils import parametrize  # noqa: E402
from torch_models import everywhere  # noqa: E402

import rnnfast.torch as rt  # noqa: E402
from rnnfast.torch.modules import Cell, Layer  # noqa: E402

pytestmark = pytest.mark.usefixtures("native")


class Mixin:
    """What a class may have besides torch's."""

    def twice(self, x):
        return 2 * self(x)[0]


class WithLengths(Mixin, nn.LSTM):
    """As of libraries that take lengths and defaults of their own."""

    def __init__(self, size, hidden):
        super().__init__(size, hidden, batch_first=True)
        self.calls = 0

    def forward(self, x, hx=None, lengths=None):
        self.calls += 1
        if lengths is None:
            return super().forward(x, hx)
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        y, state = super().forward(packed, hx)
        return nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0], state


class OwnCell(nn.GRUCell):
    """Returns twice what torch's does."""

    def forward(self, x, hx=None):
        return 2 * super().forward(x, hx)


class Checked(nn.GRU):
    """Changes what torch's forward asks."""

    def check_forward_args(self, *args):
        raise RuntimeError("checked")


class Named(nn.LSTM):
    """Has a name that rnnfast's modules have."""

    def _weights(self):
        return []


class Scaled(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight * 0.5


def results(module, *args, **kwargs):
    """Outputs and gradients."""
    module.zero_grad()
    y = module(*args, **kwargs)
    y = y[0] if isinstance(y, tuple) else y
    y.square().sum().backward()
    return y.detach(), *(p.grad.clone() for p in module.parameters())


def assert_close(some, others):
    for a, b in zip(some, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_every_module_stays_an_instance_of_its_class():
    model, x = everywhere()
    before = {name: type(m) for name, m in model.named_modules()}
    want = results(model, x)
    assert rt.accelerate(model, by_subclass=True) is model
    with by_kernels():
        assert_close(results(model, x), want)
    for name, module in model.named_modules():
        assert isinstance(module, before[name])
        if before[name] in (nn.LSTM, nn.GRU, nn.RNN):
            assert isinstance(module, Layer) and type(module).__name__ == before[name].__name__
    assert all(entry.accelerated for entry in rt.report(model))
    rt.restore(model)
    assert {name: type(m) for name, m in model.named_modules()} == before


def test_a_subclass_keeps_what_it_does_itself():
    theirs = WithLengths(3, 4)
    ours = rt.accelerate(copy.deepcopy(theirs), by_subclass=True)
    x, lengths = torch.randn(3, 5, 3), torch.tensor([2, 5, 1])
    for given in ((x,), (x, None, lengths)):
        want = results(theirs, *given)
        with by_kernels():
            assert_close(results(ours, *given), want)
    assert ours.calls == 2 and isinstance(ours, WithLengths) and isinstance(ours, nn.LSTM)
    torch.testing.assert_close(ours.twice(x), theirs.twice(x))
    assert repr(ours) == repr(theirs)
    (entry,) = rt.report(ours)
    assert entry.accelerated and entry.module == "WithLengths"
    assert entry.reason == "what its super().forward computes"
    assert type(rt.restore(ours)) is WithLengths


def test_a_cell_of_its_own():
    theirs = OwnCell(3, 4)
    ours, x = rt.accelerate(copy.deepcopy(theirs), by_subclass=True), torch.randn(2, 3)
    assert isinstance(ours, OwnCell) and isinstance(ours, Cell)
    want = results(theirs, x)
    with by_kernels():
        assert_close(results(ours, x), want)
    assert type(rt.restore(ours)) is OwnCell


@pytest.mark.parametrize(
    "made", [lambda: WithLengths(3, 4), lambda: nn.GRU(3, 4), lambda: OwnCell(3, 4)]
)
def test_copies(made):
    """By copy, pickle and torch.save: of the same class, with parameters of their own."""
    ours, x = rt.accelerate(made(), by_subclass=True), torch.randn(2, 3)
    x = x.unsqueeze(0) if isinstance(ours, Layer) else x
    want = results(ours, x)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for again in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(file, weights_only=False),
    ):
        assert type(again) is type(ours)
        assert not {id(p) for p in again.parameters()} & {id(p) for p in ours.parameters()}
        with by_kernels():
            assert_close(results(again, x), want)
    assert type(copy.copy(ours)) is type(ours)
    again.load_state_dict(ours.state_dict(), strict=True)


def test_parametrized():
    theirs = WithLengths(3, 4)
    parametrize.register_parametrization(theirs, "weight_hh_l0", Scaled())
    ours, x = rt.accelerate(copy.deepcopy(theirs), by_subclass=True), torch.randn(3, 5, 3)
    want = results(theirs, x)
    with by_kernels():
        assert_close(results(ours, x), want)
    assert type(ours).__name__ == "ParametrizedWithLengths"
    parametrize.remove_parametrizations(ours, "weight_hh_l0")
    assert isinstance(ours, Layer)
    with by_kernels():
        assert_close(results(ours, x)[:1], want[:1])
    assert type(rt.restore(ours)) is WithLengths
    rt.accelerate(theirs, by_subclass=True)
    rt.restore(theirs)
    assert type(theirs).__bases__ == (WithLengths,)
    assert_close(results(theirs, x), want)


@pytest.mark.parametrize(("made", "name"), [(Checked, "check_forward_args"), (Named, "_weights")])
def test_what_does_not_fit_is_left(made, name):
    module = rt.accelerate(made(3, 4), by_subclass=True)
    assert type(module) is made
    (entry,) = rt.report(module)
    assert not entry.accelerated and f"with a {name} of its own" in entry.reason
    named = WithLengths(3, 4)
    named._kind = "mine"
    assert type(rt.accelerate(named, by_subclass=True)) is WithLengths


class Dropped(nn.LSTM):
    """Gives torch other weights for the time of a call."""

    def forward(self, x, hx=None):
        kept = self._flat_weights
        self._flat_weights = [w * 0.5 if w.dim() == 2 else w for w in kept]
        try:
            return super().forward(x, hx)
        finally:
            self._flat_weights = kept


def test_other_flat_weights():
    theirs, x = Dropped(3, 4), torch.randn(5, 2, 3)
    ours = rt.accelerate(copy.deepcopy(theirs), by_subclass=True)
    assert isinstance(ours, Layer)
    for _ in range(2):
        assert_close(results(ours, x), results(theirs, x))
        with torch.no_grad():
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_reserved_names_in_other_places():
    for add in (
        lambda m: m.register_buffer("_states", torch.zeros(1)),
        lambda m: m.add_module("_cell", nn.Linear(2, 2)),
        lambda m: m.register_parameter("_kind", nn.Parameter(torch.zeros(1))),
    ):
        module = WithLengths(3, 4)
        add(module)
        assert type(rt.accelerate(module, by_subclass=True)) is WithLengths
        assert not rt.report(module)[0].accelerated


class Reduced(nn.GRU):
    """Pickled in its own way."""

    def __reduce__(self):
        return type(self), (self.input_size, self.hidden_size), self.__getstate__()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "made", [lambda: Reduced(3, 4), lambda: nn.LSTM(3, 4), lambda: OwnCell(3, 4)]
)
def test_pickles_of_every_protocol(made, protocol):
    ours = rt.accelerate(made(), by_subclass=True)
    again, own = pickle.loads(pickle.dumps((ours, type(ours)), protocol))
    assert type(again) is type(ours) is own
    assert all(map(torch.equal, again.parameters(), ours.parameters()))
    assert type(rt.restore(again)) is type(made())


class Registered(nn.LSTM):
    """Wants more of those that derive from it."""

    def __init_subclass__(cls, *, name, **options):
        super().__init_subclass__(**options)


def test_nothing_changes_where_a_class_cannot_be_made():
    model = nn.Sequential(nn.GRU(3, 4), Registered(4, 4))
    with pytest.raises(TypeError, match="name"):
        rt.accelerate(model, by_subclass=True)
    assert type(model[0]) is nn.GRU


def test_those_that_are_accelerated_already_stay():
    module = rt.accelerate(nn.LSTM(3, 4))
    assert type(rt.accelerate(module, by_subclass=True)) is rt.LSTM
    module = rt.accelerate(WithLengths(3, 4), by_subclass=True)
    assert rt.accelerate(rt.accelerate(module), by_subclass=True) is module
    assert isinstance(module, Layer)


def test_compilers_leave_it_out_of_their_graphs():
    model = rt.accelerate(nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4)), by_subclass=True)
    x = torch.randn(5, 2, 3)
    want = results(model, x)
    with by_kernels():
        assert_close(results(torch.compile(model, backend="eager"), x), want)
