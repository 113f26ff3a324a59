"""Names for passes in torch's profilers, which otherwise see only torch's own operations."""

from __future__ import annotations

from typing import Any

import torch

is_profiled = torch._C._autograd._profiler_enabled


def profiled(stack: Any) -> Any:
    """A stack whose passes appear in the profile under names such as `rnnfast::forward`."""
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
