"""Switching whole models to rnnfast's modules, and back."""

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

    Only the class of a module changes. The module stays the same object, with its parameters,
    hooks and parametrizations, so optimisers made before and other references to it stay valid.

    Parameters
    ----------
    model : any `torch.nn.Module`; it may itself be a recurrent one. Some modules in it are left as
        they are, such as subclasses of torch's modules; `report` lists them.
    by_subclass : False: a module gets rnnfast's class. True: it gets a class that derives from its
        own. Then layers stay instances of `torch.nn.LSTM`, which some libraries need, and
        subclasses of torch's modules are switched too: they keep their own methods, and their
        `super().forward` is rnnfast's. In exchange `torch.compile` leaves such layers out of its
        graphs, as it does torch's layers. Modules that are rnnfast's already do not change.

    Returns
    -------
    model : the same object.

    Raises
    ------
    TypeError : `model` is not a `torch.nn.Module`.
    """
    return _switched(model, partial(_of_ours, by_subclass=by_subclass))


def restore(model: Model) -> Model:
    """Reverses `accelerate`: gives every module of rnnfast in a model its class of torch back.

    It works in place and returns the model. It also switches modules that were made as rnnfast's,
    but not those of a class of your own that derives from one of rnnfast's.

    Raises
    ------
    TypeError : `model` is not a `torch.nn.Module`.
    """
    for module in _switched(model, _of_torch).modules():
        if not isinstance(module, (Layer, Cell)):
            module.__dict__.pop("_rnnfast", None)
    return model


def freeze(model: Model) -> Model:
    """Promises that the parameters of a model's recurrent modules do not change from now on.

    The kernels use packed copies of the parameters. Each call first reads the parameters once to
    see whether they have changed. After `freeze`, plain calls omit this check until `unfreeze`, so
    later changes may go unnoticed; compiled, exported and transformed calls still check. Returns
    the model.

    Raises
    ------
    TypeError : `model` is not a `torch.nn.Module`.

    Notes
    -----
    The promise is about the memory in which the parameters lie now: a module whose parameters get
    other memory checks again. Copies of a module do not take it over. It has no effect on torch's
    own modules, on parameters outside of the CPU's memory, or on ones that are computed for each
    call.
    """
    return _frozen(model, True)


def unfreeze(model: Model) -> Model:
    """Takes the promise of `freeze` back, so that calls check the parameters again.

    Returns the model.

    Raises
    ------
    TypeError : `model` is not a `torch.nn.Module`.
    """
    return _frozen(model, False)


@dataclass(frozen=True)
class Entry:
    """One recurrent module in a `Report`.

    name : the module's name in the model, the first if it has several; "" for the model itself.
    module : the name of its class.
    accelerated : whether it is one of rnnfast's modules.
    reason : why it is not accelerated. For an accelerated module: what runs by torch's own
        implementation, and why, if anything does.
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
    """A list with an `Entry` for each recurrent module of a model. It prints as a line for each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no recurrent modules"


def report(model: Module) -> Report:
    """Lists the recurrent modules of a model, and says which are accelerated, or why they are not.

    Returns
    -------
    report : a list of `Entry`, which prints as a line for each module.

    Raises
    ------
    TypeError : `model` is not a `torch.nn.Module`.
    """
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
_found: dict[tuple[Any, str], Any] = {}  # the classes that the first of them replaced
_lock = Lock()


@contextmanager
def patch() -> Iterator[None]:
    """Opens a block, or decorates a function, in which torch.nn's names make rnnfast's modules.

    ::

        with rnnfast.torch.patch():
            model = torch.nn.LSTM(40, 128)  # an rnnfast.torch.LSTM

    The block replaces RNN, GRU, LSTM, RNNCell, GRUCell and LSTMCell in `torch.nn` and
    `torch.nn.modules`, for the whole process. Names that were imported from there before stay
    torch's. Blocks may be nested, and may overlap in several threads: the last to end puts
    torch's classes back.

    Notes
    -----
    Within the block `isinstance(module, torch.nn.LSTM)` is true for rnnfast's LSTM, and false for
    torch's own. A class that derives from `torch.nn.LSTM` within the block derives from rnnfast's
    LSTM; if its methods name `torch.nn.LSTM` to call those of their base, make its instances
    within the block too. A class from before the block stays torch's, whether its methods name
    that base or not.
    """
    _patch(1)
    try:
        yield
    finally:
        _patch(-1)


def _patch(more: int) -> None:
    """Opens (1) or closes (-1) a block. Only the first and the last change the names."""
    global _patched
    places = (torch.nn, torch.nn.modules)  # not torch.nn.modules.rnn: pickle finds classes there
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
    """Gives each module the class `new_class(module, own)`, unless that is None.

    own : the module's class; its base, if torch has made the class to parametrize the module.
    """
    switched = []  # all new classes are made before the first module changes
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
    """Whether torch has made the module's class, with a property for each parametrization."""
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
