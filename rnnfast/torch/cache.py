"""What a module keeps of its parameters from call to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnfast import _backend
from rnnfast.torch.exchange import TENSORS, is_leaf, is_neg
from rnnfast.torch.kinds import Kind, fits, native
from rnnfast.torch.packs import Parameters, addresses_of


class PackCache:
    """What is kept of one module's parameters.

    Torch does not tell when a parameter changes: `p.data.mul_(…)`, a view or another process may
    change it and leave `_version` as it was. So the pack is used only where the memory of the
    parameters is the same and has the fingerprint that it had. Neither copied nor pickled with its
    module, and safe to use from several threads.
    """

    __slots__ = ("__weakref__", "_parameters", "_promise", "kinds", "lone", "select", "shared")

    def __init__(self) -> None:
        self._parameters: Parameters | None = None
        self.kinds: dict[str, Kind] = {}  # of the module, by its cell, which users may change
        # From the dict of the module's parameters, those of its flat list.
        self.select: Callable[[Any], tuple[Tensor, ...]] | None = None
        self.shared: Any = None  # what `rnnfast.torch.steps` keeps from step to step
        self.lone: Any = None  # likewise
        # Where those parameters lie whose contents the user has promised to leave as they are.
        self._promise: tuple[int, ...] | None = None

    def __reduce__(self) -> tuple[type[PackCache], tuple[()]]:
        return PackCache, ()

    def __deepcopy__(self, memo: Any) -> PackCache:
        return PackCache()

    def freeze(self, weights: tuple[Tensor, ...] | None) -> None:
        """Takes the promise that the contents of these stay as they are; None: gives it back.

        Of weights in other memory than the CPU's, or made anew for each call, there is none.
        """
        self._parameters = None  # their pack may be of contents before these
        lasting = weights is not None and all(
            type(w) in TENSORS and w.is_cpu and is_leaf(w) for w in weights
        )
        self._promise = addresses_of(weights) if weights is not None and lasting else None

    @staticmethod
    def of(module: torch.nn.Module) -> PackCache:
        """The module's own."""
        own = module.__dict__
        cache = own.get("_rnnfast")
        return own.setdefault("_rnnfast", PackCache()) if cache is None else cache

    def known(
        self, kind: Kind, weights: tuple[Tensor, ...], x: Any, states: Any
    ) -> Parameters | None:
        """What `get` gave before, if it still holds and a pass may read x and the states.

        One question to the compiled module in place of some for each tensor. None tells nothing.
        """
        found = self.kept(kind)
        return found if found is not None and found.can_read(weights, x, states) else None

    def get(self, kind: Kind, weights: tuple[Tensor, ...]) -> Parameters | None:
        """The module's weights for the kernels; None where those do not take them, or not now."""
        found = self.kept(kind)
        if found is not None and found.are(weights) and not any(map(is_neg, weights)):
            return found
        moved = None if found is None else found.moved(weights)
        if moved is not None:
            self._parameters = moved
            return moved
        backend = native()
        if backend is None or not fits(kind, weights):
            self._parameters = None
            return None
        found = Parameters(backend, kind, weights, self._promise)
        self._parameters = found if found.can_stay else None
        return found

    def remembers(self) -> bool:
        """Whether `Parameters.again` may know such a call."""
        found = self._parameters
        return found is not None and bool(found._again)

    def kept(self, kind: Kind) -> Parameters | None:
        """What `get` gave before, if it is of this kind; the weights may lie elsewhere since."""
        found = self._parameters
        if (
            found is not None
            and found.kind is kind
            and found.promise is self._promise  # another thread may have changed that meanwhile
            and found.backend is _backend.current()
        ):
            return found
        return None
