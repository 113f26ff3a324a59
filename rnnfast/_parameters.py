"""The parameters of a layer: a mapping whose version tells when packed weights are stale."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnfast import _backend, _validate
from rnnfast._locks import Lock


class _UnknownNameError(KeyError, ValueError):
    """No parameter has that name: both a wrong key and a wrong value."""

    __str__ = ValueError.__str__  # that of KeyError puts the sentence in quotes


class _Arrays(MutableMapping[str, NDArray]):
    """A mapping with fixed names and shapes; assigned values are checked and copied in."""

    # By identity, since comparing arrays does not give one truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(self, arrays: Mapping[str, NDArray]) -> None:
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> NDArray:
        return self._arrays[self._known(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __setitem__(self, name: str, value: Any) -> None:
        self._store({name: self._checked(name, value)})

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: expected parameters to stay, got a deletion")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        names = ", ".join(f"{n}: {a.shape}" for n, a in self._arrays.items())
        return f"{type(self).__name__.lstrip('_')}({names})"

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Works like `dict.update`, but checks every value before it stores any."""
        given = dict(*args, **kwargs)
        self._store({n: self._checked(n, value).copy() for n, value in given.items()})

    def _checked(self, name: str, value: Any) -> NDArray:
        own = self._arrays[self._known(name)]
        return _validate.floats(name, value, own.dtype, own.shape)

    def _known(self, name: str) -> str:
        if not isinstance(name, str) or name not in self._arrays:
            names = ", ".join(self)
            raise _UnknownNameError(
                f"parameters: expected one of {names}, got {_validate.shown(name)}"
            )
        return name

    def _store(self, values: Mapping[str, NDArray]) -> None:
        for name, value in values.items():
            np.copyto(self._arrays[name], value)


class _Draft(_Arrays):
    """The writable copies that a block of `Parameters.edit` works on."""

    def __setitem__(self, name: str, value: Any) -> None:
        # `p[name] -= ...` changes the array in place, and then assigns it to its own name.
        if value is not self[name]:
            super().__setitem__(name, value)


class _Block:
    """The context manager that `Parameters.edit` returns."""

    __slots__ = ("__weakref__", "_parameters", "is_over")

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self.is_over = False

    def __enter__(self) -> MutableMapping[str, NDArray]:
        return self._parameters._open(self)

    def __exit__(self, *exception: object) -> None:
        self.is_over = True  # first, in case the rest is interrupted
        self._parameters._close(self)


class Parameters(_Arrays):
    """The parameters of a layer: a mapping of torch's names, in torch's order, to arrays.

    `parameters[name]` is a read-only view, which shows later changes too. `parameters[name] =
    array` checks dtype and shape, and copies the array. `edit` gives arrays that can be changed in
    place. The names are fixed: none can be added or deleted.

    Raises
    ------
    KeyError : no parameter has that name. The error is a ValueError too.
    TypeError : an assigned array has another dtype, or a parameter is to be deleted.
    ValueError : an assigned array has another shape.
    """

    def __init__(self, arrays: Mapping[str, NDArray]) -> None:
        super().__init__(arrays)
        self._prepare()

    def _prepare(self) -> None:
        # A view of a read-only buffer cannot be made writable, unlike a view of a writable array.
        self._views = {n: read_only(array) for n, array in self._arrays.items()}
        self._lock = Lock()
        self._version = 0
        self._draft: _Draft | None = None
        self._block: weakref.ref[_Block] | None = None  # the block of that draft

    def __getitem__(self, name: str) -> NDArray:
        self._follow_draft(self._known(name))
        return self._views[name]

    @property
    def lock(self) -> Lock:
        """The lock that is held while parameters change, or while several are read together."""
        return self._lock

    @property
    def version(self) -> int:
        """A number that grows with every change, and with every read within an edit block."""
        if self._draft is not None:
            self._follow_draft(*self._arrays)
        return self._version

    def settled(self) -> tuple[int, Mapping[str, NDArray]]:
        """The version and its arrays, to be read under `lock`.

        If an edit block is open, they are those of the last read of `version`.
        """
        return self._version, self._views

    def edit(self) -> AbstractContextManager[MutableMapping[str, NDArray]]:
        """Opens a block in which the parameters are writable arrays, for updates in place.

        ::

            with layer.parameters.edit() as p:
                for name, gradient in grads.parameters.items():
                    p[name] -= rate * gradient

        Changes take effect at once, already within the block. An exception does not undo them.
        After the block the arrays are read-only and no longer connected to the layer.

        Returns
        -------
        block : a context manager for `with`, which gives a mapping of names to writable arrays.

        Raises
        ------
        RuntimeError : at the start of the block, if another block of the same parameters is open.
        """
        return _Block(self)

    def _open(self, block: _Block) -> _Draft:
        # The block works on copies. They cost two passes over the parameters, which is little
        # beside the gradients that an update needs. With the arrays themselves, a view taken in
        # the block could change them later, unseen, after the weights have been packed.
        with self._lock:
            self._follow_draft()
            if self._draft is not None:
                raise RuntimeError("edit: expected no open edit block, got a second one")
            copy = _backend.current().memory.copy
            draft = _Draft({name: copy(array) for name, array in self._arrays.items()})
            block.is_over = False
            self._block = weakref.ref(block)
            self._draft = draft
            return draft

    def _close(self, block: _Block) -> None:
        with self._lock:
            if self._draft is not None and self._block is not None and self._block() is block:
                self._end(self._draft)

    def _end(self, draft: _Draft) -> None:
        try:
            self._take_over(draft, self._arrays)
        except Exception:  # an array has got another shape
            self._seal(draft)
            raise
        self._seal(draft)  # if this is interrupted, `_follow_draft` does it later

    def _seal(self, draft: _Draft) -> None:
        self._draft = None
        for array in draft.values():
            array.flags.writeable = False

    def _take_over(self, draft: _Draft, names: Iterable[str]) -> None:
        self._version += 1
        super()._store({name: draft[name] for name in names})

    def copies(self) -> dict[str, NDArray]:
        """A copy of every parameter."""
        with self._lock:
            self._follow_draft(*self._arrays)
            return {name: array.copy() for name, array in self._arrays.items()}

    def _store(self, values: Mapping[str, NDArray]) -> None:
        with self._lock:
            self._version += 1  # first: an interrupted copy has changed something too
            super()._store(values)
            if self._draft is not None:
                self._draft._store(values)

    def _follow_draft(self, *names: str) -> None:
        """Takes over the named parameters as they now are in the edit block, if one is open.

        If an interrupt kept a block from being closed, this takes over all of them and closes it.
        """
        if self._draft is None:
            return
        with self._lock:
            draft, block = self._draft, None if self._block is None else self._block()
            if draft is None:  # closed by another thread meanwhile
                return
            if block is None or block.is_over:
                self._end(draft)
            else:
                self._take_over(draft, names)

    def __getstate__(self) -> dict[str, Any]:
        return {"arrays": self.copies()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._arrays = {name: _own(array) for name, array in state["arrays"].items()}
        self._prepare()


def _own(array: NDArray) -> NDArray:
    """`array` itself, or a plain contiguous copy of one that, say, was unpickled onto a file."""
    flags, native = array.flags, array.dtype.newbyteorder("=")
    if type(array) is np.ndarray and flags.carray and array.dtype == native:
        return array
    return np.array(array, native, order="C", subok=False)


def read_only(array: NDArray) -> NDArray:
    """A view of `array` through which it cannot be written, and that cannot be made writable."""
    return np.asarray(array.data.toreadonly())


def loadable(own: Mapping[str, NDArray], given: Any, strict: bool) -> dict[str, NDArray]:
    """The entries of `given` as arrays that fit `own`; one error names all that do not fit.

    Entries may be arrays or torch tensors. Those of another floating-point dtype are cast, as in
    torch.

    Raises
    ------
    TypeError : `given` is not a mapping, or only dtypes of entries are wrong.
    ValueError : an entry is missing or unexpected (only with `strict`), or has a wrong shape.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"state_dict: expected a mapping, got {type(given).__name__}")
    arrays: dict[str, NDArray] = {}
    names, shapes, types = [], [], []
    if strict:
        names += [f"{name}: expected an entry, got none" for name in own if name not in given]
        names += [f"{_named(n)}: expected no such entry, got one" for n in given if n not in own]
    for name in own:
        if name not in given:
            continue
        try:
            array = _validate.array(name, _on_the_host(given[name]))
        except TypeError as error:
            types.append(str(error))
            continue
        except RuntimeError as error:  # torch's, of a tensor that has no values
            types.append(f"{name}: expected an array, got a tensor: {error}")
            continue
        # The kind of dtypes of other libraries, such as bfloat16, is "V".
        if array.dtype.kind != "f" and not array.dtype.name.startswith(("float", "bfloat")):
            types.append(f"{name}: expected floating point, got {array.dtype}")
        elif array.shape != own[name].shape:
            expected = _validate.shape_text(own[name].shape)
            shapes.append(f"{name}: expected shape {expected}, got {array.shape}")
        else:
            with np.errstate(all="ignore"):  # what is too large becomes infinite, as in torch
                arrays[name] = np.array(array, own[name].dtype)
    wrong = names + shapes + types
    if wrong:
        raise (ValueError if names or shapes else TypeError)("state_dict: " + "; ".join(wrong))
    return arrays


def _named(key: Any) -> str:
    return key if isinstance(key, str) and len(key) <= 64 else _validate.shown(key)


def _on_the_host(value: Any) -> Any:
    """A torch tensor detached and in the host's memory; any other value as it is."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    known = str(tensor.dtype) in ("torch.float16", "torch.float32", "torch.float64")  # to NumPy
    return tensor.float() if tensor.is_floating_point() and not known else tensor
