"""Classes that derive from a module's own class, and run torch's `forward` by the kernels.

The classes of `rnnfast.torch.modules` replace torch's: their layers are no instances of
`torch.nn.LSTM`, since `torch.compile` refuses to trace into those. A class made here is a subclass
of the module's own class and of rnnfast's. So a subclass of torch's modules keeps its own methods,
and its `super().forward(…)` is rnnfast's.
"""

from __future__ import annotations

import copyreg
from typing import Any

from torch.nn import Module
from torch.nn.modules import rnn as torch_rnn

from rnnfast.torch.modules import TWINS, Layer

_OF_TORCH = (*TWINS, torch_rnn.RNNBase, torch_rnn.RNNCellBase, Module, object)

# Names that torch's `forward` looks up in its own class, and that rnnfast's `forward` does not use.
_ASKED_BY_TORCH = frozenset(
    [
        "_flat_weights",
        "_flat_weights_names",
        "all_weights",
        "check_forward_args",
        "check_hidden_size",
        "check_input",
        "get_expected_cell_size",
        "get_expected_hidden_size",
        "permute_hidden",
    ]
)

_made: dict[type[Module], type[Module]] = {}
_metas: dict[type, type] = {}


def derived(own: type[Module]) -> type[Module]:
    """The class that is made from one of torch's six, or from a class that derives from it."""
    made = _made.get(own)
    if made is None:
        ours = TWINS.get(own)
        if ours is not None and issubclass(ours, own):  # so for cells
            return ours
        bases: tuple[Any, ...] = (own, derived(_twin(own))) if ours is None else (ours, own)
        kept = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
        names = {**kept, "_OWN": own}
        if issubclass(own, torch_rnn.RNNBase):
            names["_call"] = _call
        made = _made.setdefault(own, _meta(type(own))(own.__name__, bases, names))
    return made


def origin(made: type[Module]) -> type[Module] | None:
    """The class from which `derived` has made the class `made`; None if it has not."""
    found: type[Module] | None = vars(made).get("_OWN")
    return found


def conflict(module: Module, own: type[Module]) -> str | None:
    """A name that the module or its class `own` defines, so that `derived` cannot be used.

    None : there is no such name.
    """
    classes = [c for c in own.__mro__ if c not in _OF_TORCH]
    ours = [c for c in TWINS[_twin(own)].__mro__ if c not in _OF_TORCH]
    reserved = {name for c in ours for name in vars(c) if not name.startswith("__")}
    reserved -= {"forward", *vars(_twin(own))}
    names = {name for c in classes for name in vars(c)}
    given = {*vars(module), *module._modules, *module._parameters, *module._buffers}
    return min(names & _ASKED_BY_TORCH | (names | given) & reserved, default=None)


def _twin(own: type[Module]) -> Any:
    return next(c for c in own.__mro__ if c in TWINS)


def _call(self: Any, input: Any, hx: Any, format_name: str | None = None) -> Any:
    """Leaves the call to torch if a subclass has replaced a parameter in `_flat_weights`."""
    own = self._parameters
    given = zip(self._flat_weights_names, self._flat_weights, strict=False)
    if any([own.get(name, weight) is not weight for name, weight in given]):
        return self._torch_forward(input, hx)
    return Layer._call(self, input, hx, format_name)


def _meta(of: type) -> Any:
    """A metaclass for made classes, which are pickled by their origin: pickle can find that."""
    meta = _metas.get(of)
    if meta is None:
        meta = _metas.setdefault(of, type("Derived", (of,), {}))
        copyreg.pickle(meta, lambda made: (derived, (made._OWN,)))
    return meta
