"""`patch`: names of torch.nn that make rnnfast's modules for a while."""

from __future__ import annotations

import copy
import pickle
import threading
from unittest import mock

import pytest

torch = pytest.importorskip("torch")

import rnnfast.torch as rt  # noqa: E402  after torch is known to be there

NAMES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
PLACES = (torch.nn, torch.nn.modules)


@pytest.fixture(autouse=True)
def unpatched():
    """No test may leave torch changed, whatever happens within."""
    before = {name: getattr(torch.nn, name) for name in NAMES}
    yield before
    for place in (*PLACES, torch.nn.modules.rnn):
        assert {name: getattr(place, name) for name in NAMES} == before


@pytest.mark.parametrize("name", NAMES)
def test_makes_ours_and_then_torchs_again(name, unpatched):
    with rt.patch():
        for place in PLACES:
            ours = getattr(place, name)(3, 4)
            assert type(ours) is getattr(rt, name)
            assert isinstance(ours, getattr(torch.nn, name))
    theirs = getattr(torch.nn, name)(3, 4)
    assert type(theirs) is unpatched[name]
    assert not isinstance(theirs, getattr(rt, name))


def test_gives_the_parameters_and_results_of_torch():
    x = torch.randn(5, 2, 3)
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(3, 4, 2, bidirectional=True)
    torch.manual_seed(0)
    with rt.patch():
        ours = torch.nn.LSTM(3, 4, 2, bidirectional=True)
    for (name, want), (own, got) in zip(
        theirs.named_parameters(), ours.named_parameters(), strict=True
    ):
        assert own == name
        assert torch.equal(got, want)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_nested():
    with rt.patch():
        with rt.patch():
            assert torch.nn.GRU is rt.GRU
        assert torch.nn.GRU is rt.GRU
    assert torch.nn.GRU is not rt.GRU


def test_an_exception_undoes_it():
    with pytest.raises(KeyError, match="within"):
        with rt.patch():
            with rt.patch():
                raise KeyError("within")
    assert torch.nn.LSTM is not rt.LSTM


def test_as_a_decorator():
    @rt.patch()
    def build():
        return torch.nn.GRUCell(3, 4)

    assert type(build()) is rt.GRUCell
    assert type(build()) is rt.GRUCell
    assert type(torch.nn.GRUCell(3, 4)) is not rt.GRUCell


def test_from_several_threads():
    made, ready = [], threading.Barrier(3)

    def build():
        ready.wait()
        for _ in range(20):
            with rt.patch():
                made.append(type(torch.nn.LSTM(1, 1)))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [rt.LSTM] * 60


def test_modules_made_before_work_within():
    theirs, x = torch.nn.LSTM(3, 4), torch.randn(5, 3)
    want = theirs(x)[0]
    with rt.patch():
        assert torch.equal(theirs(x)[0], want)
        assert torch.equal(copy.deepcopy(theirs)(x)[0], want)
        assert type(rt.restore(rt.accelerate(theirs))) is type(theirs)


def test_a_subclass_of_the_patched_name():
    with rt.patch():

        class Own(torch.nn.GRU):
            pass

    own = Own(3, 4)
    assert isinstance(own, rt.GRU)
    assert own(torch.randn(5, 3))[0].shape == (5, 4)
    assert rt.report(own)[0].accelerated


def test_what_is_made_within_pickles_outside():
    with rt.patch():
        ours = torch.nn.LSTM(3, 4)
        within = pickle.dumps(ours)
    assert type(pickle.loads(within)) is rt.LSTM
    assert type(pickle.loads(pickle.dumps(ours))) is rt.LSTM


def test_torchs_own_still_pickle_within():
    theirs = torch.nn.LSTM(3, 4)
    with rt.patch():
        written = pickle.dumps(theirs)
    assert type(pickle.loads(written)) is type(theirs)


def test_blocks_that_overlap():
    """As those of two tasks on one thread: the last to leave puts torch's names back."""
    theirs = torch.nn.LSTM
    first, second = rt.patch(), rt.patch()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.nn.LSTM is rt.LSTM
    second.__exit__(None, None, None)
    assert torch.nn.LSTM is theirs


@pytest.mark.parametrize("name", NAMES)
def test_a_class_of_torchs_that_names_its_base(name):
    """Its methods find another class under that name within, and get torch's."""
    base = getattr(torch.nn, name)

    class Own(base):
        def __init__(self, *sizes):
            getattr(torch.nn, name).__init__(self, *sizes)

        def forward(self, x, hx=None):
            return getattr(torch.nn, name).forward(self, x, hx)

        def __setattr__(self, attribute, value):
            getattr(torch.nn, name).__setattr__(self, attribute, value)

        def __setstate__(self, state):
            getattr(torch.nn, name).__setstate__(self, state)

    own, x = Own(3, 4), torch.randn(5, 3)
    want = own(x)
    with rt.patch():
        torch.testing.assert_close(own(x), want, rtol=0, atol=0)
        within = Own(3, 4)
        within.load_state_dict(own.state_dict())
        torch.testing.assert_close(within(x), want, rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(own)(x), want, rtol=0, atol=0)
    assert not isinstance(within, getattr(rt, name))


def test_a_name_that_is_gone_changes_nothing():
    with mock.patch.object(torch.nn.modules, "GRUCell"):
        del torch.nn.modules.GRUCell
        with pytest.raises(AttributeError, match="GRUCell"), rt.patch():
            pass
        assert torch.nn.LSTM is not rt.LSTM
        torch.nn.modules.GRUCell = torch.nn.GRUCell


def test_names_that_others_have_replaced(unpatched):
    class Fake(torch.nn.LSTM):
        pass

    with mock.patch.object(torch.nn, "LSTM", Fake):
        with rt.patch():
            assert torch.nn.LSTM is rt.LSTM
        assert torch.nn.LSTM is Fake
    with rt.patch():
        torch.nn.LSTM = Fake
        with rt.patch():
            assert torch.nn.LSTM is Fake
    assert torch.nn.LSTM is Fake
    torch.nn.LSTM = unpatched["LSTM"]
