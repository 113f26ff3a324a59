"""Three whole models, trained beside their accelerated copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402  after torch is known to be there
from torch.nn.functional import cross_entropy, ctc_loss, log_softmax, relu  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import rnnfast.torch as rt  # noqa: E402

# Of the losses of some steps, relative: what a step's gradients differ by, 1e-6 and 1e-14 of them,
# and what training makes of it.
LOSSES = {"float32": 1e-4, "float64": 1e-10}
OUTPUTS = {"float32": 1e-5, "float64": 1e-12}

PADDING = 0


class Tagger(nn.Module):
    """A tag for each word: embeddings, and two packed bidirectional LSTM layers."""

    def __init__(self, words: int = 30, tags: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 8, PADDING)
        self.dropout = nn.Dropout(0.2)
        self.lstm = nn.LSTM(8, 9, 2, batch_first=True, dropout=0.3, bidirectional=True)
        self.readout = nn.Linear(18, tags)

    def forward(self, words: Tensor) -> Tensor:
        """(B, T) to (B, T, tags)."""
        lengths = (words != PADDING).sum(1)
        x = self.dropout(self.embedding(words))
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.readout(self.dropout(y))


class Translator(nn.Module):
    """A bidirectional GRU reads; cells write, attending to what it gave (Luong et al. 2015)."""

    def __init__(self, source: int = 20, target: int = 15, width: int = 7) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(source, 6), nn.Embedding(target, 6)
        self.encoder = nn.GRU(6, width, bidirectional=True)
        self.bridge = nn.Linear(2 * width, width)
        self.first = nn.LSTMCell(6 + 2 * width, width)
        self.second = nn.GRUCell(width, width)
        self.query = nn.Linear(width, 2 * width, bias=False)
        self.readout = nn.Linear(3 * width, target)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(S, B) and (T, B) to (T, B, words): the target's words are given one step late."""
        memory, ends = self.encoder(self.source(source))
        h = torch.tanh(self.bridge(torch.cat([*ends], -1)))
        c, top = torch.zeros_like(h), h
        context, scores = memory.mean(0), []
        for word in self.target(target):
            h, c = self.first(torch.cat([word, context], -1), (h, c))
            top = self.second(h, top)
            weights = torch.einsum("sbw,bw->sb", memory, self.query(top)).softmax(0)
            context = torch.einsum("sb,sbw->bw", weights, memory)
            scores.append(self.readout(torch.cat([top, context], -1)))
        return torch.stack(scores)


class Recogniser(nn.Module):
    """Text in images: convolutions, then a stack of BiLSTMs over columns (Shi et al. 2017)."""

    def __init__(self, symbols: int = 6) -> None:
        super().__init__()
        self.images = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1)),
        )  # fmt: skip
        self.layers = nn.ModuleList([nn.LSTM(12, 8, bidirectional=True) for _ in range(2)])
        self.between = nn.Linear(16, 12)
        self.readout = nn.Linear(16, symbols)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 8, width) to log-probabilities (width / 2, B, symbols)."""
        x = self.images(images).flatten(1, 2).permute(2, 0, 1)  # not contiguous
        y, _ = self.layers[0](x)
        y, _ = self.layers[1](relu(self.between(y)))
        return log_softmax(self.readout(y), -1)


class Task(NamedTuple):
    """A model, what to make its data of, its loss of its output and data, and its optimiser."""

    model: Callable[[], nn.Module]
    data: Callable[[torch.Generator, torch.dtype], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
    loss: Callable[..., Tensor]
    optimiser: Callable[..., torch.optim.Optimizer]


def sentences(generator, dtype):
    words = torch.randint(1, 30, (4, 7), generator=generator)
    for row, length in enumerate((5, 7, 1, 4)):
        words[row, length:] = PADDING
    return (words,), (words % 5,)


def tagging_loss(scores, tags):
    return cross_entropy(scores.transpose(1, 2), tags)


def translations(generator, dtype):
    source = torch.randint(20, (6, 4), generator=generator)
    target = torch.randint(15, (5, 4), generator=generator)
    return (source, target[:-1]), (target[1:],)


def translation_loss(scores, target):
    return cross_entropy(scores.flatten(0, 1), target.flatten())


def images(generator, dtype):
    drawn = torch.randn(3, 1, 8, 16, generator=generator, dtype=dtype)
    return (drawn,), (torch.randint(1, 6, (3, 3), generator=generator),)


def recognition_loss(scores, symbols):
    steps, batch = torch.full((3,), len(scores)), torch.full((3,), symbols.shape[1])
    return ctc_loss(scores, symbols, steps, batch)


TASKS = {
    "tagger": Task(Tagger, sentences, tagging_loss, lambda p: torch.optim.Adam(p, 0.02)),
    "translator": Task(
        Translator, translations, translation_loss, lambda p: torch.optim.AdamW(p, 0.02)
    ),
    "recogniser": Task(
        Recogniser, images, recognition_loss, lambda p: torch.optim.SGD(p, 0.2, momentum=0.9)
    ),
}


def trained(task: Task, model: nn.Module, dtype: torch.dtype, steps: int = 8) -> list[float]:
    """The losses of some steps, from a seed of their own."""
    generator = torch.Generator().manual_seed(1)
    inputs, targets = task.data(generator, dtype)
    optimiser = task.optimiser(model.parameters())
    torch.manual_seed(2)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = task.loss(model(*inputs), *targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype", list(LOSSES))
@pytest.mark.parametrize("name", list(TASKS))
def test_trains_as_the_original(name, dtype):
    task, kind = TASKS[name], getattr(torch, dtype)
    torch.manual_seed(0)
    theirs = task.model().to(kind)
    ours = rt.accelerate(copy.deepcopy(theirs))
    recurrent = [m for m in theirs.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
    entries = rt.report(ours)
    assert len(entries) == len(recurrent)
    assert all(entry.accelerated for entry in entries)

    want = trained(task, theirs, kind)
    assert want[-1] < 0.9 * want[0]
    assert trained(task, ours, kind) == pytest.approx(want, rel=LOSSES[dtype], abs=0)

    inputs, _ = task.data(torch.Generator().manual_seed(3), kind)
    ours.load_state_dict(theirs.state_dict())
    for own in (ours, theirs):
        own.eval()
    with torch.no_grad():
        expected = theirs(*inputs)
        tolerance = OUTPUTS[dtype]
        torch.testing.assert_close(ours(*inputs), expected, rtol=tolerance, atol=tolerance)
        rt.freeze(ours)
        torch.testing.assert_close(ours(*inputs), expected, rtol=tolerance, atol=tolerance)

    assert rt.restore(ours) is ours
    assert [type(m) for m in ours.modules()] == [type(m) for m in theirs.modules()]
    with torch.no_grad():
        assert torch.equal(ours(*inputs), expected)
    assert trained(task, ours.train(), kind, 2) == trained(task, theirs.train(), kind, 2)


def test_one_model_goes_on_under_the_other():
    """A checkpoint of the accelerated model, and its optimiser's, train the original further."""
    task = TASKS["translator"]
    torch.manual_seed(0)
    theirs = task.model().double()
    ours = rt.accelerate(copy.deepcopy(theirs))
    want = trained(task, theirs, torch.float64) + trained(task, theirs, torch.float64)
    got = trained(task, ours, torch.float64)
    assert got == pytest.approx(want[: len(got)], rel=1e-10)
    after = task.model().double()
    after.load_state_dict(ours.state_dict())
    got += trained(task, after, torch.float64)
    assert got == pytest.approx(want, rel=1e-10)
