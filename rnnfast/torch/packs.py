"""Packed weights of torch parameters, kept while the parameters' contents stay."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rnnfast._cells import CELLS, Weights
from rnnfast._native_backend import NativeBackend
from rnnfast.torch.exchange import (
    array,
    copy_of,
    has_memory,
    reader_of_tensors,
    stack_taking_tensors,
    taking_tensors,
    widened,
)
from rnnfast.torch.kinds import FORMATS, Kind
from rnnfast.torch.profiling import is_profiled, profiled

if TYPE_CHECKING:
    from rnnfast._native import Packed, Stack

# Weights of so many bytes are read twice where a call is not as one before it after all.
_SMALL = 1 << 20

_get_num_threads = torch.get_num_threads
_is_grad_enabled = torch.is_grad_enabled


class Packs:
    """The weights of each layer and direction, and the stacks that run them.

    format_name : of the operands of products; None: as the weights are.
    borrowed : they are read where they lie; else packed.
    """

    def __init__(
        self,
        backend: NativeBackend,
        kind: Kind,
        packs: list[Packed],
        names: list[Any],
        format_name: str | None,
        borrowed: bool,
    ) -> None:
        self.kind = kind
        self.format_name = format_name
        self.borrowed = borrowed
        self._backend = backend
        self._packs = packs
        self._names = names  # of each pack's parameters, in the order of `Weights`
        self._stacks: dict[tuple[bool, bool], Stack] = {}

    @classmethod
    def of(
        cls,
        backend: NativeBackend,
        kind: Kind,
        weights: Sequence[Tensor],
        format_name: str | None = None,
        borrow: bool = False,
    ) -> Packs:
        """Of weights that fit the kind; `borrow` : contiguous ones, to be read where they lie."""
        cell = CELLS[kind.cell]
        packs, names = [], []
        given = map(array, map(widened, weights))
        for shapes in kind.shapes():
            own = Weights(**{name: next(given) for name in shapes})
            made = backend.borrow(cell, own) if borrow else backend.pack(cell, own, format_name)
            packs.append(made)
            names.append(tuple(n if n in shapes else None for n in Weights._fields))
        return cls(backend, kind, packs, names, format_name, borrow)

    def renewed(self, weights: Sequence[Tensor]) -> Packs:
        """Of others that fit the kind, held as these are."""
        backend, kind = self._backend, self.kind
        packs = taking_tensors(backend.repack)(self._packs, tuple(map(widened, weights)))
        if packs is None:  # one is not contiguous
            return Packs.of(backend, kind, weights, self.format_name, self.borrowed)
        return Packs(backend, kind, packs, self._names, self.format_name, self.borrowed)

    def stack(self, batch_first: bool = False, ragged: bool = False) -> Any:
        """The `Stack` of all layers; `ragged` : for a PackedSequence's data, and batch_sizes."""
        made = self._stacks.get((batch_first, ragged))
        if made is None:
            kind = self.kind
            own = self._packs, self._names, kind.directions, kind.one_step
            made = self._backend.stack(*own, batch_first, tensors=True, ragged=ragged)
            self._stacks[batch_first, ragged] = made = stack_taking_tensors(made)
        return profiled(made) if is_profiled() else made

    def layer(self, layer: int) -> Packs:
        """Those of one layer."""
        directions = self.kind.directions
        own = slice(layer * directions, (layer + 1) * directions)
        packs, names = self._packs[own], self._names[own]
        kind = self.kind.layer(layer)
        return Packs(self._backend, kind, packs, names, self.format_name, self.borrowed)


class Known(NamedTuple):
    """How a pass is run by one call of the compiled module, by `infer_at` or `forward_at`.

    place : of the weights, as of `Parameters`. seen : their fingerprint, if that has to be asked.
    """

    stack: Any
    place: Any
    seen: int | None


class Parameters:
    """The parameters of a module where they lie, which this keeps: packed, and as they are.

    place : of weights that are held already. promise : that of the module when they were taken up.
    frozen : it is of these.
    format_name : the only one that the kernels read them in; None: as they are, or in any.
    """

    def __init__(
        self,
        backend: NativeBackend,
        kind: Kind,
        weights: tuple[Tensor, ...],
        promise: tuple[int, ...] | None,
        place: bytes | None = None,
    ) -> None:
        self.backend = backend
        self.kind = kind
        self.promise = promise
        self.frozen = promise is not None and promise == addresses_of(weights)
        self.format_name = FORMATS.get(weights[0].dtype)
        self._weights = weights if place else held(weights)
        self._place_of = taking_tensors(backend.place)
        self._place = place or self._place_of(self._weights)
        self._can_read = reader_of_tensors(backend)
        # By their formats, with the fingerprint that the weights had.
        self._packed: dict[str | None, tuple[int, Packs]] = {}
        self._borrowed: Packs | None = None
        self._borrowed_before: Packs | None = None  # of others of their kind
        # Memory that is not contiguous is packed each time: copies of it would show no changes.
        self.can_stay = isinstance(self._place, bytes)
        # How calls without gradients ran, on packs and on weights where they lie; see `again`.
        self._again: dict[bool, tuple[bool | None, Callable[..., Any], int | None]] = {}
        self._are_small = sum(map(bytes_of, weights)) <= _SMALL

    def are(self, weights: tuple[Tensor, ...]) -> bool:
        """Whether these lie in the same memory."""
        return self._place_of(weights) == self._place

    def can_read(self, weights: tuple[Tensor, ...], x: Any, states: Any) -> bool:
        """Whether these lie in the same memory, of what can stay, and a pass may read them all."""
        return self._can_read(self._place, weights, x, states)

    def moved(self, weights: tuple[Tensor, ...]) -> Parameters | None:
        """Such parameters in other memory, of which little is asked anew; None: they are others."""
        if self.promise is not None or not self.can_stay:
            return None
        own = held(weights)
        place = taking_tensors(self.backend.moved)(self._place, own)
        if not isinstance(place, bytes) or not all(map(has_memory, own)):
            return None
        made = Parameters(self.backend, self.kind, own, None, place)
        made._packed = dict(self._packed)  # the contents may be the same
        made._borrowed_before = self._borrowed
        return made

    def known(self, packs: Packs, batch_first: bool) -> Known | None:
        """How passes on `packs` run from now on; None: they need more than `Known` has."""
        converts = packs.format_name is not None or self.format_name is not None
        if packs.kind is not self.kind or not self.can_stay or converts or is_profiled():
            return None  # of one layer; or those that need more
        seen = None  # borrowed ones show changes, and of frozen ones there are to be none
        if not packs.borrowed and not self.frozen:
            kept = self._packed.get(None)
            if kept is None or kept[1] is not packs:
                return None
            seen = kept[0]
        stack = packs.stack(batch_first)
        return None if stack.infer_at is None else Known(stack, self._place, seen)

    def remember(self, packs: Packs, batch_first: bool | None) -> None:
        """That `packs` runs a call without gradients; batch_first : None: of a cell."""
        known = self.known(packs, bool(batch_first))
        if known is not None and (known.seen is None or self._are_small):
            self._again[packs.borrowed] = batch_first, known.stack.infer_at, known.seen

    def again(
        self, batch_first: bool | None, weights: tuple[Tensor, ...], x: Any, states: Any
    ) -> Any:
        """What such a call gives, as a stack does, which asks all else itself; None: it is another.

        weights : which may have got other memory. x, states : whatever the caller gave.
        """
        for borrowed in (True, False):
            known = self._again.get(borrowed)
            if known is not None and known[0] == batch_first and not is_profiled():
                given = self._place, weights, x, states, _get_num_threads(), known[2]
                result = known[1](*given)
                if result is not NotImplemented:
                    return result
        return None

    def borrowed(self, rows: float, weights: tuple[Tensor, ...]) -> Packs | None:
        """To be read where they lie, by one step of so many rows; None: packed is better.

        That reads them once, without a fingerprint.
        weights : in the same memory; what backward reads is taken from their storage.
        """
        if rows > self.backend.few_rows or self.frozen or not self.can_stay:
            return None
        made = self._borrowed
        if made is None or _is_grad_enabled():
            self._take_up(weights)
            made = self._borrowed
        if made is None:
            before, self._borrowed_before = self._borrowed_before, None
            if before is None:
                made = Packs.of(self.backend, self.kind, self._weights, borrow=True)
            else:
                made = before.renewed(self._weights)
            self._borrowed = made
        return made

    def still(self, packs: Packs, weights: tuple[Tensor, ...]) -> Packs:
        """`packs`; or others of these weights, where it was of memory that has been given back.

        Parameters that have got other memory (`p.data = …`) leave that which a pass has read.
        """
        if not packs.borrowed or self.are(self._weights):
            return packs
        if not all(map(has_memory, weights)):
            raise RuntimeError("weights: expected them in memory, as in the forward pass, got none")
        return Packs.of(self.backend, self.kind, weights, borrow=True)

    def packed(self, weights: tuple[Tensor, ...], format_name: str | None = None) -> Packs:
        """As they are now, in the same memory: `weights`, whose storage may be another."""
        self._take_up(weights)
        self._borrowed_before = None  # which keeps the memory of others
        packed, now = self._packed.get(format_name), None
        if packed is not None:
            if self.frozen:
                return packed[1]
            now = fingerprint_of(self.backend, self._weights)
            if packed[0] == now:
                return packed[1]
        before = None if packed is None else packed[1]
        own = self.backend, self.kind, self._weights, format_name
        seen, packs = packed_now(*own, now, before)
        if seen is not None and self.can_stay:
            self._packed[format_name] = seen, packs
        return packs

    def _take_up(self, weights: tuple[Tensor, ...]) -> None:
        """Weights in the same memory, where the storage of those before has given it back."""
        if self.can_stay and not self.are(self._weights):
            self._weights = held(weights)
            self._borrowed = None


def held(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Their memory, whatever others give them."""
    return tuple(weight.detach() for weight in weights)


def addresses_of(weights: Sequence[Tensor]) -> tuple[int, ...]:
    """Where each begins."""
    return tuple(weight.data_ptr() for weight in weights)


def bytes_of(weight: Tensor) -> int:
    """Those of its elements."""
    return weight.numel() * weight.element_size()


def fingerprint_of(backend: NativeBackend, weights: tuple[Tensor, ...]) -> int:
    """Of all their contents together."""
    fingerprint: int = taking_tensors(backend.fingerprint)(weights, _get_num_threads())
    return fingerprint


def packed_now(
    backend: NativeBackend,
    kind: Kind,
    weights: tuple[Tensor, ...],
    format_name: str | None,
    seen: int | None,
    before: Packs | None = None,
) -> tuple[int | None, Packs]:
    """Packs of the weights, and the fingerprint of what was packed; None: which nobody knows.

    seen : their fingerprint just now, if it was looked at. before : packs of the same kind and
        format, of other contents.
    """

    def made(of: tuple[Tensor, ...]) -> Packs:
        if before is None:
            return Packs.of(backend, kind, of, format_name)
        return before.renewed(of)

    if len(sys._current_frames()) > 1:  # threads might change it, and back again before a look
        copies = tuple(copy_of(weight) for weight in weights)
        return fingerprint_of(backend, copies), made(copies)
    if not all(weight.is_contiguous() for weight in weights):
        return None, made(weights)
    if seen is None:
        seen = fingerprint_of(backend, weights)
    packs = made(weights)
    return (seen if seen == fingerprint_of(backend, weights) else None), packs
