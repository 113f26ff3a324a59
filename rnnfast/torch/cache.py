"""The cache in which a module keeps its packed parameters from call to call."""

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
    """What one module keeps of its parameters.

    Torch does not tell when a parameter changes: `p.data.mul_(…)`, a view or another process may
    change it and leave `_version` as it was. So packs are used only while the parameters have the
    fingerprint that they had when they were packed, unless the user has frozen them. A cache is
    neither copied nor pickled with its module, and several threads may use it.
    """

    __slots__ = ("__weakref__", "_parameters", "_promise", "kinds", "lone", "select", "shared")

    def __init__(self) -> None:
        self._parameters: Parameters | None = None
        self.kinds: dict[str, Kind] = {}  # by cell: users may change the module's
        # Takes the flat list of parameters out of the module's dict of them.
        self.select: Callable[[Any], tuple[Tensor, ...]] | None = None
        self.shared: Any = None  # `rnnfast.torch.steps` keeps it from step to step
        self.lone: Any = None  # likewise
        # The addresses of the parameters that the user has promised not to change.
        self._promise: tuple[int, ...] | None = None

    def __reduce__(self) -> tuple[type[PackCache], tuple[()]]:
        return PackCache, ()

    def __deepcopy__(self, memo: Any) -> PackCache:
        return PackCache()

    def freeze(self, weights: tuple[Tensor, ...] | None) -> None:
        """Takes the promise that the contents of `weights` do not change; None ends it.

        Weights outside of the CPU's memory, or made for each call, cannot be promised.
        """
        self._parameters = None  # its packs may have older contents than these
        lasting = weights is not None and all(
            type(w) in TENSORS and w.is_cpu and is_leaf(w) for w in weights
        )
        self._promise = addresses_of(weights) if weights is not None and lasting else None

    @staticmethod
    def of(module: torch.nn.Module) -> PackCache:
        """The cache of a module, made if it has none."""
        own = module.__dict__
        cache = own.get("_rnnfast")
        return own.setdefault("_rnnfast", PackCache()) if cache is None else cache

    def known(
        self, kind: Kind, weights: tuple[Tensor, ...], x: Any, states: Any
    ) -> Parameters | None:
        """The last result of `get`, if it is still right and a pass may read x and the states.

        This asks the compiled module once, where `get` needs some questions for each tensor. After
        None, `get` may still give a result.
        """
        found = self.kept(kind)
        return found if found is not None and found.can_read(weights, x, states) else None

    def get(self, kind: Kind, weights: tuple[Tensor, ...]) -> Parameters | None:
        """The module's weights for the kernels; None if the kernels cannot take them now."""
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
        """Whether there are calls that `Parameters.again` can repeat."""
        found = self._parameters
        return found is not None and bool(found._again)

    def kept(self, kind: Kind) -> Parameters | None:
        """The last result of `get`, if it is of this kind; the weights may have moved since."""
        found = self._parameters
        if (
            found is not None
            and found.kind is kind
            and found.promise is self._promise  # another thread may have changed it
            and found.backend is _backend.current()
        ):
            return found
        return None
