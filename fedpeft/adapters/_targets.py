"""Which layers a method adapts: linear layers of a model's body, named by the ends of their paths.

The body is what the model's library calls its base model; everything outside it (classifier, lm_head) is head and is
never a target. Only layers that are exactly ``nn.Linear`` or GPT-2's ``Conv1D`` count: a subclass may compute
otherwise.
"""

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters.paths import matches, place
from fedpeft.errors import UnsupportedError

__all__ = ["at_places", "features", "linear_layers", "matches", "matching", "place", "planned", "put", "transposed"]


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return path -> linear layer of the model's body, in module order.

    Raises:
        UnsupportedError: the body has none.
    """
    body = model.base_model if isinstance(model, PreTrainedModel) else model
    inside = {id(module) for module in body.modules()}
    found = {path: module for path, module in model.named_modules() if _linear(module) and id(module) in inside}
    if not found:
        raise UnsupportedError(f"{type(model).__name__} has no nn.Linear or Conv1D in its body to adapt")
    return found


def matching(model: nn.Module, suffixes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the paths that end in one of the suffixes, in module order; all of them when None.

    Raises:
        UnsupportedError: a suffix matches nothing; names what is there.
    """
    layers = linear_layers(model)
    for suffix in suffixes or ():
        if not any(matches(path, suffix) for path in layers):
            raise UnsupportedError(
                f"no linear layer of {type(model).__name__} ends in {suffix!r}; there are: {', '.join(_places(layers))}"
            )
    return tuple(path for path in layers if suffixes is None or any(matches(path, suffix) for suffix in suffixes))


def at_places(model: nn.Module, places: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that stand at one of these places of a block, in module order."""
    return tuple(path for path in linear_layers(model) if place(path) in places)


def features(layer: nn.Module) -> tuple[int, int]:
    """Return (d_in, d_out) of a linear layer; nn.Linear keeps its weight (d_out, d_in), Conv1D (d_in, d_out)."""
    rows, columns = layer.get_parameter("weight").shape
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)


def transposed(model: nn.Module, paths: Iterable[str]) -> bool:
    """Whether one of these layers keeps its weight (d_in, d_out), as Conv1D does."""
    return any(isinstance(model.get_submodule(path), Conv1D) for path in paths)


def planned(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """Return path -> module of what a plan names, in module order.

    Raises:
        UnsupportedError: the model lacks one; it was planned for another.
    """
    named, wanted = dict(model.named_modules()), set(paths)
    if missing := sorted(wanted - set(named)):
        raise UnsupportedError(f"the plan adapts {missing[0]!r}, which {type(model).__name__} does not have")
    return {path: module for path, module in named.items() if path in wanted}


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set the module at a path."""
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).add_module(name, module)


def _linear(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Conv1D)


def _places(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(place(path) for path in paths))
