"""Packed weights of torch parameters, kept while the parameters' contents stay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rnnfast import _backend
from rnnfast._cells import CELLS, Sizes, Weights, weight_shapes
from rnnfast._locks import Lock
from rnnfast._native_backend import NativeBackend
from rnnfast.torch.exchange import TENSORS, array, is_neg, stack_taking_tensors, taking_tensors

if TYPE_CHECKING:
    from rnnfast._native import Packed, Stack

DTYPES = {torch.float32: "float32", torch.float64: "float64"}

_get_num_threads = torch.get_num_threads


class Kind(NamedTuple):
    """What a recurrent module computes, whatever its weights.

    cell : a name in `CELLS`; sizes : of the first layer; one_step : a cell module's, without T.
    """

    cell: str
    sizes: Sizes
    layers: int = 1
    directions: int = 1
    bias: bool = True
    one_step: bool = False

    @property
    def has_c(self) -> bool:
        """Whether its state is a pair (h, c)."""
        return "c" in CELLS[self.cell].states

    @property
    def width(self) -> int:
        """D*W, the width of the output."""
        return self.directions * self.sizes.output

    def sizes_of(self, layer: int) -> Sizes:
        """Of `layer`: those above the first read D*W."""
        return self.sizes if layer == 0 else self.sizes._replace(input=self.width)

    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """The shapes of the parameters of each layer and direction, by their names in `Weights`."""
        cell = CELLS[self.cell]
        return [
            weight_shapes(cell, self.sizes_of(layer), self.bias)
            for layer in range(self.layers)
            for _ in range(self.directions)
        ]

    def layer(self, layer: int) -> Kind:
        """The same for one of its layers alone."""
        return self._replace(sizes=self.sizes_of(layer), layers=1)


def native() -> NativeBackend | None:
    """The compiled kernels, if they are the backend in use."""
    backend = _backend.current()
    return backend if isinstance(backend, NativeBackend) else None


class Packs:
    """The packed weights of every layer and direction, and the stacks that run them."""

    def __init__(self, backend: NativeBackend, kind: Kind, weights: Sequence[Tensor]) -> None:
        cell = CELLS[kind.cell]
        self._backend = backend
        self.kind = kind
        self._packs: list[Packed] = []
        self._names: list[tuple[str | None, ...]] = []
        given = map(array, weights)
        for shapes in kind.shapes():
            own = Weights(**{name: next(given) for name in shapes})
            self._packs.append(backend.pack(cell, own))
            self._names.append(tuple(n if n in shapes else None for n in Weights._fields))
        self._stacks: dict[bool | int, Stack] = {}

    def stack(self, batch_first: bool = False) -> Stack:
        """Of all layers."""
        made = self._stacks.get(batch_first)
        if made is None:
            made = self._made(self._packs, self._names, batch_first)
            self._stacks[batch_first] = made
        return made

    def layer(self, layer: int) -> Stack:
        """Of one layer."""
        directions = self.kind.directions
        own = slice(layer * directions, (layer + 1) * directions)
        return self._made(self._packs[own], self._names[own], False)

    def _made(self, packs: list[Packed], names: list[Any], batch_first: bool) -> Stack:
        kind = self.kind
        made = self._backend.stack(packs, names, kind.directions, kind.one_step, batch_first)
        return stack_taking_tensors(made)


class _Entry:
    """Packed weights, with where the weights lie, which it keeps, and what was there."""

    def __init__(self, backend: NativeBackend, kind: Kind, weights: Sequence[Tensor]) -> None:
        self.backend = backend
        self.kind = kind
        self._weights = tuple(w.detach() for w in weights)  # others may give them other memory
        self._place_of = taking_tensors(backend.place)
        self._place = self._place_of(self._weights)
        if self._place is not None:
            self._fingerprint = self._contents()
        self.packs = Packs(backend, kind, self._weights)

    def is_of(self, weights: tuple[Tensor, ...]) -> bool:
        """Whether they lie where those did."""
        return self._place_of(weights) == self._place and not any(map(is_neg, weights))

    def is_current(self) -> bool:
        """Whether there is what was packed. A copy does not show changes, and never is."""
        return self._place is not None and self._contents() == self._fingerprint

    def _contents(self) -> int:
        return taking_tensors(self.backend.fingerprint)(self._weights, _get_num_threads())


class PackCache:
    """The packed weights of one module, as its parameters last were.

    Torch does not tell when a parameter changes: `p.data.mul_(…)`, a view or another process may
    change it and leave `_version` as it was. So the pack is used only where the memory of the
    parameters is the same and has the fingerprint that it had. Neither copied nor pickled with its
    module, and safe to use from several threads.
    """

    __slots__ = ("__weakref__", "_entry", "_frozen", "kinds", "select", "shared")

    def __init__(self) -> None:
        self._entry: _Entry | None = None
        self.kinds: dict[str, Kind] = {}  # of the module, by its cell, which users may change
        # From the dict of the module's parameters, those of its flat list.
        self.select: Callable[[Any], tuple[Tensor, ...]] | None = None
        self.shared: Any = None  # of a cell: what `rnnfast.torch.cells` keeps from step to step
        self._frozen = False  # the user has promised that the contents stay

    def __reduce__(self) -> tuple[type[PackCache], tuple[()]]:
        return PackCache, ()

    def __deepcopy__(self, memo: Any) -> PackCache:
        return PackCache()

    def freeze(self, frozen: bool) -> None:
        """Takes the promise that the contents stay as they are now, or gives it back."""
        self._entry = None  # it may be of contents before these
        self._frozen = frozen

    @staticmethod
    def of(module: torch.nn.Module) -> PackCache:
        """The module's own."""
        own = module.__dict__
        cache = own.get("_rnnfast")
        return own.setdefault("_rnnfast", PackCache()) if cache is None else cache

    def get(self, kind: Kind, weights: tuple[Tensor, ...]) -> Packs | None:
        """The packed weights; None where the kernels do not take them, or not in this process."""
        entry = self._entry
        if (
            entry is not None
            and entry.kind is kind
            and entry.is_of(weights)
            and entry.backend is _backend.current()
            and (self._frozen or entry.is_current())
        ):
            return entry.packs
        backend = native()
        if backend is None or not fits(kind, weights):
            return None
        entry = _Entry(backend, kind, weights)
        if entry.is_current():  # nothing changed while it was packed
            self._entry = entry
        return entry.packs


def fits(kind: Kind, weights: Sequence[Tensor]) -> bool:
    """Whether the kernels take the weights: CPU tensors of one dtype, in the kind's shapes."""
    if any(type(w) not in TENSORS for w in weights):
        return False
    shapes = [shape for own in kind.shapes() for shape in own.values()]
    dtype = weights[0].dtype
    return (
        dtype in DTYPES
        and len(shapes) == len(weights)
        and all(
            w.is_cpu
            and w.dtype is dtype
            and w.layout is torch.strided
            and not w.is_neg()
            and w.shape == shape
            for w, shape in zip(weights, shapes, strict=True)
        )
    )


class ContentCache:
    """The packed weights last used by the registered operators, which know no module.

    One for each place in memory where weights are, with their fingerprint; those of updated weights
    take the place of those before.
    """

    _MOST = 8

    def __init__(self) -> None:
        self._packs: OrderedDict[Any, tuple[int, Packs]] = OrderedDict()
        self._lock = Lock()

    def get(self, backend: NativeBackend, kind: Kind, weights: Sequence[Tensor]) -> Packs:
        """The packed weights, which fit the kind."""
        held = tuple(w.detach().contiguous() for w in weights)
        place = kind, held[0].dtype, tuple(w.data_ptr() for w in weights)
        fingerprint = taking_tensors(backend.fingerprint)
        seen = fingerprint(held, _get_num_threads())
        with self._lock:
            found = self._packs.get(place)
            if found is not None and found[0] == seen:
                self._packs.move_to_end(place)
                return found[1]
        packs = Packs(backend, kind, held)
        if fingerprint(held, _get_num_threads()) == seen:  # it did not change meanwhile
            with self._lock:
                self._packs[place] = seen, packs
                self._packs.move_to_end(place)
                while len(self._packs) > self._MOST:
                    self._packs.popitem(last=False)
        return packs
