"""Packed weights of whoever has them, by their contents: those of the registered operators."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from rnnfast._locks import Lock
from rnnfast._native_backend import NativeBackend
from rnnfast.torch.kinds import FORMATS, Kind
from rnnfast.torch.packs import Packs, addresses_of, fingerprint_of, packed_now


class _Kept(NamedTuple):
    """What a `ContentCache` has of some weights, and whose memory they are."""

    seen: int
    packs: Packs
    storages: tuple[StorageWeakRef, ...]

    def is_live(self) -> bool:
        return not any(storage.expired() for storage in self.storages)


class ContentCache:
    """The packed weights of the registered operators, which know no module.

    One for each place in memory where weights are, with their fingerprint; those of updated weights
    take the place of those before. They are kept while that memory is in use, up to the next pack.
    """

    _MOST = 256

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, _Kept] = OrderedDict()
        self._lock = Lock()

    def get(
        self,
        backend: NativeBackend,
        kind: Kind,
        weights: Sequence[Tensor],
        format_name: str | None,
    ) -> Packs:
        """The packed weights, which fit the kind; format None: that of their dtype."""
        held = tuple(w.detach().contiguous() for w in weights)
        dtype = held[0].dtype
        format_name = format_name or FORMATS.get(dtype)
        place = kind, dtype, format_name, addresses_of(held)
        seen: int | None = fingerprint_of(backend, held)
        with self._lock:
            found = self._kept.get(place)
            if found is not None and found.seen == seen:
                self._kept.move_to_end(place)
                return found.packs
        before = None if found is None else found.packs
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
