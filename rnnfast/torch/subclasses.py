"""Classes that derive from a module's own, and run what it asks of torch's by the kernels.

Those of `rnnfast.torch.modules` take the place of torch's: their layers are no instances of
`torch.nn.LSTM`, which `torch.compile` would refuse. A class made here is one more of its bases, and
a subclass of torch's keeps what it does itself: its `super().forward(…)` is rnnfast's.
"""

from __future__ import annotations

from typing import Any

from torch.nn import Module
from torch.nn.modules import rnn as torch_rnn

from rnnfast.torch.modules import TWINS

_OF_TORCH = (*TWINS, torch_rnn.RNNBase, torch_rnn.RNNCellBase, Module, object)

# What torch's `forward` asks of its own class, and rnnfast's asks nobody.
_ASKED_BY_TORCH = frozenset(
    [
        "check_forward_args",
        "check_hidden_size",
        "check_input",
        "get_expected_cell_size",
        "get_expected_hidden_size",
        "permute_hidden",
    ]
)

_made: dict[type[Module], type[Module]] = {}


def derived(own: type[Module]) -> type[Module]:
    """The class made of one of torch's six, or of one that derives from it."""
    made = _made.get(own)
    if made is None:
        ours = TWINS.get(own)
        if ours is not None and issubclass(ours, own):  # as cells are
            return ours
        bases: tuple[Any, ...] = (own, derived(_twin(own))) if ours is None else (ours, own)
        names: dict[str, Any] = {"_OWN": own, "__module__": own.__module__}
        if "__reduce_ex__" not in {name for c in own.__mro__[:-1] for name in vars(c)}:
            names["__reduce_ex__"] = _reduce
        made = _made.setdefault(own, type(own.__name__, bases, names))
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
    found = names & _ASKED_BY_TORCH | (names | vars(module).keys()) & reserved
    return min(found, default=None)


def _twin(own: type[Module]) -> Any:
    return next(c for c in own.__mro__ if c in TWINS)


def _reduce(self: Module, protocol: Any) -> Any:
    """Of the class by its origin, which pickle can find."""
    made = type(self)
    reduced: Any = object.__reduce_ex__(self, protocol)
    _, args, *rest = reduced
    # Else it has a `__reduce__` of its own.
    return (_new, (origin(made),), *rest) if args == (made,) else reduced


def _new(own: type[Module]) -> Module:
    made: Any = derived(own)
    new: Module = made.__new__(made)
    return new
