"""Switching whole models over, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch.nn import Module
from torch.nn.modules import rnn as torch_rnn
from torch.nn.utils import parametrize

from rnnfast._locks import Lock
from rnnfast.torch import cuda, subclasses
from rnnfast.torch.cache import PackCache
from rnnfast.torch.kinds import COMPUTED, native
from rnnfast.torch.modules import TWINS, Cell, Layer

Model = TypeVar("Model", bound=Module)

_OURS = {ours: theirs for theirs, ours in TWINS.items()}
_RECURRENT = (torch_rnn.RNNBase, torch_rnn.RNNCellBase)


def accelerate(model: Model, *, by_subclass: bool = False) -> Model:
    """Switches every recurrent module in a model to rnnfast, in place, and returns the model.

    A module stays the object that it is, with its parameters, hooks and parametrizations: only its
    class changes. So optimisers made before, and references from several places, stay right.

    Parameters
    ----------
    model : any module; it may itself be a recurrent one. What is left alone, such as subclasses of
        torch's modules, `report` tells.
    by_subclass : gives each module a class that derives from its own, in place of rnnfast's. So
        layers stay instances of `torch.nn.LSTM`, as some libraries ask, and subclasses of torch's
        modules are switched too: what they do themselves stays, and their `super().forward` is
        rnnfast's. `torch.compile` leaves such layers out of its graphs, as it does torch's. Modules
        that are rnnfast's already stay as they are.
    """
    return _switched(model, partial(_of_ours, by_subclass=by_subclass))


def restore(model: Model) -> Model:
    """The inverse of `accelerate`: every module of rnnfast becomes torch's, in place."""
    for module in _switched(model, _of_torch).modules():
        if not isinstance(module, (Layer, Cell)):
            module.__dict__.pop("_rnnfast", None)
    return model


def freeze(model: Model) -> Model:
    """Promises that the parameters of the model's recurrent modules stay as they are.

    Calls then use the packed weights without looking whether the parameters have changed, which
    takes reading them once. It holds for parameters at the same place in memory; copies of the
    module start without the promise. Returns the model.
    """
    return _frozen(model, True)


def unfreeze(model: Model) -> Model:
    """Takes the promise of `freeze` back. Returns the model."""
    return _frozen(model, False)


@dataclass(frozen=True)
class Entry:
    """What `report` tells of one recurrent module.

    name : in the model; of the first of several places. accelerated : whether it is rnnfast's.
    reason : why not; or, of one that is, what of it runs by torch's own implementation.
    """

    name: str
    module: str
    accelerated: bool
    reason: str = ""

    def __str__(self) -> str:
        state = "accelerated" if self.accelerated else "left"
        return f"{self.name or '(model)'}: {self.module}: {state}" + (
            f": {self.reason}" if self.reason else ""
        )


class Report(list[Entry]):
    """The recurrent modules of a model, a line for each when printed."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no recurrent modules"


def report(model: Module) -> Report:
    """What of a model is accelerated, what is not, and why."""
    found = Report()
    for name, module in _checked(model).named_modules():
        kind = type(module).__name__
        if isinstance(module, (Layer, Cell)):
            found.append(Entry(name, kind, True, _by_torch(module)))
        elif isinstance(module, _RECURRENT):
            found.append(Entry(name, kind, False, _left(module)))
        elif isinstance(module, torch.jit.ScriptModule) and _is_recurrent_script(module):
            found.append(Entry(name, module.original_name, False, "compiled by torch.jit.script"))
    return found


_patched = 0  # how many blocks of `patch` are open
_found: dict[tuple[Any, str], Any] = {}  # what the first of them found there
_lock = Lock()


@contextmanager
def patch() -> Iterator[None]:
    """Within it, `torch.nn.LSTM(…)` and the others make rnnfast's modules.

    It replaces the names in `torch.nn` and `torch.nn.modules` for the whole process; names
    imported from there before stay torch's. Within it, `isinstance(module, torch.nn.LSTM)` holds
    for rnnfast's LSTM, and for torch's own does not. A class that derives from `torch.nn.LSTM`
    within it is rnnfast's, and one from before is torch's, also where it names that base to call
    its methods; but the first is then to be made within it.
    """
    _patch(1)
    try:
        yield
    finally:
        _patch(-1)


def _patch(more: int) -> None:
    """Opens or closes a block: the first and the last change the names."""
    global _patched
    places = (torch.nn, torch.nn.modules)  # and not where pickle looks for classes
    names = {(place, t.__name__): ours for place in places for t, ours in TWINS.items()}
    with _lock:
        if _patched == 0:
            _found.update({(place, name): getattr(place, name) for place, name in names})
        before, _patched = _patched, _patched + more
        for (place, name), ours in names.items():
            if not before:
                setattr(place, name, ours)
            elif not _patched and getattr(place, name) is ours:  # else others have replaced it
                setattr(place, name, _found[place, name])


def _checked(model: Model) -> Model:
    if not isinstance(model, Module):
        got = model.__name__ if isinstance(model, type) else type(model).__name__
        kind = "the class " if isinstance(model, type) else ""
        raise TypeError(f"model: expected a torch.nn.Module, got {kind}{got}")
    return model


def _switched(model: Model, new_class: Callable[[Module, Any], Any]) -> Model:
    """new_class : of a module and its class, or the base of one by torch; None: it stays."""
    switched = []  # all classes are there before the first module changes
    for module in _checked(model).modules():
        own = type(module)
        if not _is_made_by_parametrize(module):
            new = new_class(module, own)
        else:
            new = new_class(module, own.__bases__[0])
            if new is not None:
                kept = vars(own).items()
                kept = {k: v for k, v in kept if k not in ("__dict__", "__weakref__")}
                new = type(new)(own.__name__, (new,), kept)
        if new is not None:
            switched.append((module, new))
    for module, new in switched:
        module.__class__ = new
    return model


def _is_made_by_parametrize(module: Module) -> bool:
    """Whether torch has made its class for it, with a property for each parameter."""
    return parametrize.is_parametrized(module) and len(type(module).__bases__) == 1


def _of_ours(module: Module, own: Any, by_subclass: bool) -> Any:
    if not by_subclass:
        return TWINS.get(own)
    if not issubclass(own, tuple(TWINS)) or issubclass(own, (Layer, Cell)):
        return None
    return subclasses.derived(own) if subclasses.conflict(module, own) is None else None


def _of_torch(module: Module, own: Any) -> Any:
    return subclasses.origin(own) or _OURS.get(own)


def _frozen(model: Model, frozen: bool) -> Model:
    for module in _checked(model).modules():
        if isinstance(module, (Layer, Cell)):
            cache = PackCache.of(module)
            cache.freeze(module._weights(cache) if frozen else None)
    return model


def _left(module: Module) -> str:
    base = next((t for t in TWINS if isinstance(module, t)), None)
    if base is None:
        return "a recurrent module that is none of torch.nn's"
    own = type(module).__bases__[0] if _is_made_by_parametrize(module) else type(module)
    if own is base:
        return "accelerate has not been called"
    a_subclass = f"a subclass of torch.nn.{base.__name__}"
    name = subclasses.conflict(module, own)
    if name is not None:
        return f"{a_subclass} with a {name} of its own"
    return f"{a_subclass}, which may compute something else"


def _by_torch(module: Layer | Cell) -> str:
    weight = module._parameter(0)
    if isinstance(module, Layer) and not module.proj_size and cuda.runs(weight):
        return ""
    if weight.device.type != "cpu":
        lacks = cuda.lacks(weight) if weight.is_cuda else ""
        return f"runs by torch: on {weight.device}" + (f": {lacks}" if lacks else "")
    if native() is None:
        return "runs by torch: rnnfast's compiled kernels are not in use"
    if weight.dtype not in COMPUTED:
        return f"runs by torch: {str(weight.dtype).removeprefix('torch.')}"
    own = subclasses.origin(type(module))
    return "" if own is None or own in TWINS else "what its super().forward computes"


def _is_recurrent_script(module: torch.jit.ScriptModule) -> bool:
    return getattr(module, "original_name", "") in {t.__name__ for t in TWINS}
