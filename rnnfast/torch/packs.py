"""Packed weights of torch parameters, kept while the parameters' contents stay the same."""

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

# `Parameters.again` may read weights of at most this many bytes for their fingerprint. If the call
# turns out to be another, they are read twice.
_SMALL = 1 << 20

_get_num_threads = torch.get_num_threads
_is_grad_enabled = torch.is_grad_enabled


class Packs:
    """The weights of each layer and direction, and the stacks that run them.

    format_name : the format of the operands of products; None: that of the weights.
    borrowed : whether passes read the weights where they lie; if not, they read packed copies.
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
        """Packs weights that fit the kind; `borrow` : reads contiguous ones where they lie."""
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
        """Packs of other weights that fit the kind; packed or borrowed as these are."""
        backend, kind = self._backend, self.kind
        packs = taking_tensors(backend.repack)(self._packs, tuple(map(widened, weights)))
        if packs is None:  # one is not contiguous
            return Packs.of(backend, kind, weights, self.format_name, self.borrowed)
        return Packs(backend, kind, packs, self._names, self.format_name, self.borrowed)

    def stack(self, batch_first: bool = False, ragged: bool = False) -> Any:
        """The `Stack` of all layers; `ragged` : x is the data of a PackedSequence."""
        made = self._stacks.get((batch_first, ragged))
        if made is None:
            kind = self.kind
            own = self._packs, self._names, kind.directions, kind.one_step
            made = self._backend.stack(*own, batch_first, tensors=True, ragged=ragged)
            self._stacks[batch_first, ragged] = made = stack_taking_tensors(made)
        return profiled(made) if is_profiled() else made

    def layer(self, layer: int) -> Packs:
        """The packs of one layer."""
        directions = self.kind.directions
        own = slice(layer * directions, (layer + 1) * directions)
        packs, names = self._packs[own], self._names[own]
        kind = self.kind.layer(layer)
        return Packs(self._backend, kind, packs, names, self.format_name, self.borrowed)


class Known(NamedTuple):
    """What one call of the compiled module, to `infer_at` or `forward_at`, needs to run a pass.

    place : the place of the weights. seen : their fingerprint; None: it need not be checked.
    """

    stack: Any
    place: Any
    seen: int | None


class Parameters:
    """A module's parameters at one place in memory, which it keeps alive, and their packs.

    place : the place of the weights, if they are detached already (see `held`).
    promise : the module's promise (see `PackCache.freeze`) when this object was made.
    frozen : whether the promise is about these weights.
    format_name : the only format in which the kernels read them; None: any format.
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
        # For each format the packs, with the fingerprint that the weights had.
        self._packed: dict[str | None, tuple[int, Packs]] = {}
        self._borrowed: Packs | None = None
        self._borrowed_before: Packs | None = None  # those of weights that have moved
        # Weights that are not contiguous are packed for each call: contiguous copies of them would
        # not show changes.
        self.can_stay = isinstance(self._place, bytes)
        # How calls without gradients ran, on borrowed packs (True) and on others; see `again`.
        self._again: dict[bool, tuple[bool | None, Callable[..., Any], int | None]] = {}
        self._are_small = sum(map(bytes_of, weights)) <= _SMALL

    def are(self, weights: tuple[Tensor, ...]) -> bool:
        """Whether these weights lie in the same memory."""
        return self._place_of(weights) == self._place

    def can_read(self, weights: tuple[Tensor, ...], x: Any, states: Any) -> bool:
        """Whether these weights lie in the same memory, and a pass may read all the tensors."""
        return self._can_read(self._place, weights, x, states)

    def moved(self, weights: tuple[Tensor, ...]) -> Parameters | None:
        """An object for weights that differ only in their memory, made with few checks.

        None : the weights differ in more, or a promise or memory that is not contiguous forbids it.
        """
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
        """How passes on `packs` run from now on; None: they need more than `Known` holds."""
        converts = packs.format_name is not None or self.format_name is not None
        if packs.kind is not self.kind or not self.can_stay or converts or is_profiled():
            return None  # packs of another kind are those of one layer
        seen = None  # borrowed weights are read as they are, and frozen ones do not change
        if not packs.borrowed and not self.frozen:
            kept = self._packed.get(None)
            if kept is None or kept[1] is not packs:
                return None
            seen = kept[0]
        stack = packs.stack(batch_first)
        return None if stack.infer_at is None else Known(stack, self._place, seen)

    def remember(self, packs: Packs, batch_first: bool | None) -> None:
        """Keeps `packs` of a call without gradients for `again`; batch_first : None for a cell."""
        known = self.known(packs, bool(batch_first))
        if known is not None and (known.seen is None or self._are_small):
            self._again[packs.borrowed] = batch_first, known.stack.infer_at, known.seen

    def again(
        self, batch_first: bool | None, weights: tuple[Tensor, ...], x: Any, states: Any
    ) -> Any:
        """The results of a call that repeats a remembered one; None: the call may be another.

        The stack itself checks all that is not checked here: weights may have got other memory,
        and x and the states are whatever the caller gave.
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
        """Packs for one step of `rows` rows that reads the weights where they lie.

        Such a step reads them once, since it needs no fingerprint. None : packed weights are
        better, or `weights` are frozen or cannot be borrowed.
        weights : the weights in the same memory; they are held if those held before have lost it.
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
        """`packs`; or packs of `weights`, if `packs` borrows memory that has been given back.

        Parameters that got other memory since the forward pass (`p.data = …`) do not matter: the
        memory that it has read is still held.
        """
        if not packs.borrowed or self.are(self._weights):
            return packs
        if not all(map(has_memory, weights)):
            raise RuntimeError("weights: expected them in memory, as in the forward pass, got none")
        return Packs.of(self.backend, self.kind, weights, borrow=True)

    def packed(self, weights: tuple[Tensor, ...], format_name: str | None = None) -> Packs:
        """Packs of the weights as they are now.

        weights : the weights in the same memory, though perhaps of another storage.
        """
        self._take_up(weights)
        self._borrowed_before = None  # it keeps the memory of other weights alive
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
        """Holds `weights`, in the same memory, if the storage of those held has given it back."""
        if self.can_stay and not self.are(self._weights):
            self._weights = held(weights)
            self._borrowed = None


def held(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Detached weights, which keep their memory even if the weights are given other memory."""
    return tuple(weight.detach() for weight in weights)


def addresses_of(weights: Sequence[Tensor]) -> tuple[int, ...]:
    """The address of each weight."""
    return tuple(weight.data_ptr() for weight in weights)


def bytes_of(weight: Tensor) -> int:
    """The bytes of a weight's elements."""
    return weight.numel() * weight.element_size()


def fingerprint_of(backend: NativeBackend, weights: tuple[Tensor, ...]) -> int:
    """One fingerprint of the contents of all weights."""
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
    """The fingerprint of what was packed, or None if it is not known, and packs of the weights.

    seen : the present fingerprint of the weights, if the caller has computed it.
    before : earlier packs of the same kind and format, with other contents.
    """

    def made(of: tuple[Tensor, ...]) -> Packs:
        if before is None:
            return Packs.of(backend, kind, of, format_name)
        return before.renewed(of)

    if len(sys._current_frames()) > 1:  # another may change a weight, and change it back
        copies = tuple(copy_of(weight) for weight in weights)
        return fingerprint_of(backend, copies), made(copies)
    if not all(weight.is_contiguous() for weight in weights):
        return None, made(weights)
    if seen is None:
        seen = fingerprint_of(backend, weights)
    packs = made(weights)
    return (seen if seen == fingerprint_of(backend, weights) else None), packs
