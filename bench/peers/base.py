"""What a peer is to the benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from numpy.typing import NDArray

from bench.problem import Problem
from bench.shapes import Case


class Runner(ABC):
    """A peer that is built for one problem and mode, and can be timed.

    precision : what it computes in; None: the case's dtype.
    """

    precision: str | None = None

    def ready(self) -> AbstractContextManager[Any]:
        """The state of the process that `run` needs, set up around a block of calls, untimed."""
        return nullcontext()

    @abstractmethod
    def run(self, k: int) -> Any:
        """The timed step on input k: a forward pass, in training with all the gradients."""

    @abstractmethod
    def answer(self, result: Any) -> dict[str, NDArray]:
        """What `run` returned, as arrays: `output` (T, B, D*H); in training also `input`.

        `input` (T, B, I) and, by torch's names, the parameters are gradients.
        """


class Peer(ABC):
    """An implementation of recurrent layers."""

    @abstractmethod
    def refuses(self, case: Case, mode: str) -> str | None:
        """Why it cannot do this, or None."""

    @abstractmethod
    def build(self, problem: Problem, mode: str) -> Runner:
        """A runner with the problem's weights, on the case's number of threads."""
