"""The cache of packed weights for the registered operators, which know no module."""

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

# What an operator's arguments say of its weights: cell, directions, bias and format_name.
Form = tuple[str, int, bool, str | None]


class _Kept(NamedTuple):
    """An entry of a `ContentCache`.

    seen : the fingerprint of the weights. storages : the memory that they lie in.
    """

    seen: int
    packs: Packs
    storages: tuple[StorageWeakRef, ...]

    def is_live(self) -> bool:
        return not any(storage.expired() for storage in self.storages)


class ContentCache:
    """The packed weights of the registered operators, with the fingerprints of their contents.

    It has one entry for each form and place; a place records addresses, shapes and dtypes. The
    packs of updated weights replace the earlier ones. Each new entry removes those whose memory has
    been freed, and the least recently used ones beyond `_MOST`.
    """

    _MOST = 256

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Form, Any], _Kept] = OrderedDict()
        self._lock = Lock()

    def known(
        self, backend: NativeBackend, form: Form, weights: tuple[Tensor, ...]
    ) -> Packs | None:
        """The packs that `get` gave for weights at this place, if their contents are the same."""
        held = tuple(map(Tensor.detach, weights))  # other threads may give `weights` other memory
        found = self._find((form, taking_tensors(backend.place)(held)))
        if found is not None and found.seen == fingerprint_of(backend, held):
            return found.packs
        return None

    def get(
        self, backend: NativeBackend, form: Form, kind: Kind, weights: Sequence[Tensor]
    ) -> Packs:
        """Packs of the weights, which must fit the kind.

        A format of None in `form` means the format of the weights' dtype.
        """
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
