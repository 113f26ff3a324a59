"""The interface of a peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from numpy.typing import NDArray

from bench.problem import Problem
from bench.shapes import Case


class Runner(ABC):
    """A peer that was built for one problem and mode, and can be timed.

    precision : the precision in which it computes; None: the case's dtype.
    """

    precision: str | None = None

    def ready(self) -> AbstractContextManager[Any]:
        """A context that prepares the process for a block of calls of `run`; it is not timed."""
        return nullcontext()

    @abstractmethod
    def run(self, k: int) -> Any:
        """The function to time, on input k: a forward pass, and in training all gradients."""

    @abstractmethod
    def answer(self, result: Any) -> dict[str, NDArray]:
        """The arrays of a result of `run`: `output` (T, B, D*H), and in training the gradients.

        The gradients are `input` (T, B, I), and those of the parameters under torch's names.
        """


class Peer(ABC):
    """An implementation of recurrent layers."""

    @abstractmethod
    def refuses(self, case: Case, mode: str) -> str | None:
        """Why the peer cannot run this case in this mode; None if it can."""

    @abstractmethod
    def build(self, problem: Problem, mode: str) -> Runner:
        """Makes a runner with the problem's weights and the case's number of threads."""
