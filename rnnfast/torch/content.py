"""Packed weights of whoever has them, by their contents: those of the registered operators."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from rnnfast._locks import Lock
from rnnfast._native_backend import NativeBackend
from rnnfast.torch.exchange import taking_tensors
from rnnfast.torch.kinds import FORMATS, Kind
from rnnfast.torch.packs import Packs, fingerprint_of, packed_now

# What an operator is told of its weights: cell, directions, bias and format_name.
Form = tuple[str, int, bool, str | None]


class _Kept(NamedTuple):
    """What a `ContentCache` has of some weights, and whose memory they are."""

    seen: int
    packs: Packs
    storages: tuple[StorageWeakRef, ...]

    def is_live(self) -> bool:
        return not any(storage.expired() for storage in self.storages)


class ContentCache:
    """The packed weights of the registered operators, which know no module.

    One for each form and place in memory, which tells of shapes and dtype too, with the fingerprint
    of the weights there; those of updated weights take the place of those before. They are kept
    while that memory is in use, up to the next pack.
    """

    _MOST = 256

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Form, Any], _Kept] = OrderedDict()
        self._lock = Lock()

    def known(
        self, backend: NativeBackend, form: Form, weights: tuple[Tensor, ...]
    ) -> Packs | None:
        """What `get` gave for weights at this place, if they are the same still."""
        held = tuple(map(Tensor.detach, weights))  # other threads may give them other memory
        found = self._find((form, taking_tensors(backend.place)(held)))
        if found is not None and found.seen == fingerprint_of(backend, held):
            return found.packs
        return None

    def get(
        self, backend: NativeBackend, form: Form, kind: Kind, weights: Sequence[Tensor]
    ) -> Packs:
        """The packed weights, which fit the kind; the format None: that of their dtype."""
        held = tuple(w.detach().contiguous() for w in weights)
        place = form, taking_tensors(backend.place)(held)
        seen: int | None = fingerprint_of(backend, held)
        found = self._find(place)
        if found is not None and found.seen == seen:
            return found.packs
        before = None if found is None else found.packs
        format_name = form[-1] or FORMATS.get(held[0].dtype)
        seen, packs = packed_now(backend, kind, held, format_name, seen, before)
        if seen is not None:
            kept = _Kept(seen, packs, tuple(StorageWeakRef(w.untyped_storage()) for w in held))
            with self._lock:
                self._kept[place] = kept
                self._kept.move_to_end(place)
                for key in [key for key, own in self._kept.items() if not own.is_live()]:
                    del self._kept[key]
                while len(self._kept) > self._MOST:
                    self._kept.popitem(last=False)
        return packs

    def _find(self, place: tuple[Form, Any]) -> _Kept | None:
        with self._lock:
            found = self._kept.get(place)
            if found is not None:
                self._kept.move_to_end(place)
            return found
