"""Classes that derive from a module's own, and run what it asks of torch's by the kernels.

Those of `rnnfast.torch.modules` take the place of torch's: their layers are no instances of
`torch.nn.LSTM`, which `torch.compile` would refuse. A class made here is one more of its bases, and
a subclass of torch's keeps what it does itself: its `super().forward(…)` is rnnfast's.
"""

from __future__ import annotations

import copyreg
from typing import Any

from torch.nn import Module
from torch.nn.modules import rnn as torch_rnn

from rnnfast.torch.modules import TWINS, Layer

_OF_TORCH = (*TWINS, torch_rnn.RNNBase, torch_rnn.RNNCellBase, Module, object)

# What torch's `forward` asks of its own class, and rnnfast's asks nobody.
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
    """The class made of one of torch's six, or of one that derives from it."""
    made = _made.get(own)
    if made is None:
        ours = TWINS.get(own)
        if ours is not None and issubclass(ours, own):  # as cells are
            return ours
        bases: tuple[Any, ...] = (own, derived(_twin(own))) if ours is None else (ours, own)
        kept = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
        names = {**kept, "_OWN": own}
        if issubclass(own, torch_rnn.RNNBase):
            names["_call"] = _call
        made = _made.setdefault(own, _meta(type(own))(own.__name__, bases, names))
    return made


def origin(made: type[Module]) -> type[Module] | None:
    """The class that `made` was made of; None: it is none of these."""
    found: type[Module] | None = vars(made).get("_OWN")
    return found


def conflict(module: Module, own: type[Module]) -> str | None:
    """What a module of the class `own` has in its own way, so that no class of these suits it."""
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
    """By torch with weights that a subclass has put in place of the parameters, as torch has it."""
    own = self._parameters
    given = zip(self._flat_weights_names, self._flat_weights, strict=False)
    if any([own.get(name, weight) is not weight for name, weight in given]):
        return self._torch_forward(input, hx)
    return Layer._call(self, input, hx, format_name)


def _meta(of: type) -> Any:
    """A class of classes that are pickled by their origin, which pickle can find."""
    meta = _metas.get(of)
    if meta is None:
        meta = _metas.setdefault(of, type("Derived", (of,), {}))
        copyreg.pickle(meta, lambda made: (derived, (made._OWN,)))
    return meta
