"""Names for passes in torch's profilers, which see torch's own operations alone."""

from __future__ import annotations

from typing import Any

import torch

is_profiled = torch._C._autograd._profiler_enabled


def profiled(stack: Any) -> Any:
    """A stack whose passes are `rnnfast::forward` and so on in the profile."""
    return _Profiled(stack)


class _Profiled:
    def __init__(self, stack: Any) -> None:
        self._stack = stack

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._stack, name)

        def named(*args: Any) -> Any:
            with torch.profiler.record_function(f"rnnfast::{name}"):
                return function(*args)

        return named
