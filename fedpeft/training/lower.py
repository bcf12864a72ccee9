"""The part of a model below the lowest block that an adapter touches: a fixed function of the example.

Dropout is off in it, since it never trains. A model that is given the states entering the first block above does not
compute them: embeddings and lower blocks pass them on for the length of one call, and nothing else of it is changed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from fedpeft.adapters.base import Attached
from fedpeft.errors import UnsupportedError
from fedpeft.models.blocks import Blocks, blocks_of
from fedpeft.tasks.base import Batch

__all__ = ["Lower", "find_lower"]

Losses = Callable[[nn.Module, Batch], Tensor]
_TOLERANCE = 1e-5
_REMEDY = "set compute.cache_frozen = false"


class _Reached(Exception):  # noqa: N818 - it ends a forward pass and is no error
    """Carries the states that enter a block."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Lower:
    """What never changes, and where it ends."""

    model: nn.Module
    embeddings: nn.Module
    blocks: tuple[nn.Module, ...]
    """Those below, at least one."""
    above: nn.Module
    """The first block that is not below."""
    modules: tuple[nn.Module, ...]
    """All that is below, for its dropout."""

    @contextmanager
    def entered(self, states: Tensor | None) -> Iterator[None]:
        """Let the model go on from states (batch, length, width) inside the block, or compute them without dropout."""
        if self.embeddings.training:
            for module in self.modules:
                module.training = False
        if states is None:
            yield
            return

        def given(*_: Any, **__: Any) -> Tensor:
            return states

        stand_ins = {self.embeddings: given, self.blocks[0]: given, **dict.fromkeys(self.blocks[1:], _passed)}
        for module, stand_in in stand_ins.items():
            vars(module)["forward"] = stand_in
        try:
            yield
        finally:
            for module in stand_ins:
                del vars(module)["forward"]

    @torch.no_grad()
    def states(self, losses: Losses, batch: Batch) -> Tensor:
        """Return what enters the first block above, (batch, length, width); nothing after that is computed."""
        hook = self.above.register_forward_pre_hook(_reached, with_kwargs=True)
        try:
            with self.entered(None):
                losses(self.model, batch)
        except _Reached as reached:
            return reached.states
        finally:
            hook.remove()
        raise UnsupportedError(f"{type(self.model).__name__} never called a block of its own; {_REMEDY}")

    @torch.no_grad()
    def prove(self, losses: Losses, batch: Batch) -> None:
        """Compare the losses of a few examples with and without their states.

        Raises:
            UnsupportedError: they differ, so the model passes more between blocks than states.
        """
        expected = losses(self.model, batch)
        with self.entered(self.states(losses, batch)):
            found = losses(self.model, batch)
        away = float((found - expected).abs().max())
        if not away <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            raise UnsupportedError(
                f"compute.cache_frozen: with the states of its lower blocks {type(self.model).__name__} gives losses "
                f"that are off by {away:.1e}, allowed is {_TOLERANCE:.0e}: its blocks pass on more; {_REMEDY}"
            )


def find_lower(attached: Attached) -> Lower:
    """Return the part of the model that no slot of the adapter is in.

    Slots that do not train now count too: a strategy may have them train, or change the weight they stand by.

    Raises:
        UnsupportedError: the architecture is not known, or the adapter touches the embeddings or the first block.
    """
    model = attached.model
    try:
        found = blocks_of(model)
    except UnsupportedError as error:
        raise UnsupportedError(f"compute.cache_frozen: {error}; {_REMEDY}") from error
    touched = _touched(attached, found)
    first = min((_place(path, found) for path in touched), default=len(found.blocks) - 1)
    if first < 1:
        lowest = next(path for path in touched if _place(path, found) == first)
        raise UnsupportedError(
            f"compute.cache_frozen: the adapter is at {lowest!r}, and nothing below that is worth keeping; adapt upper "
            "blocks alone (adapter.target_modules, with the block's number, as in "
            f"'{found.prefixes[-1]}...'), or {_REMEDY}"
        )
    first = min(first, len(found.blocks) - 1)
    return Lower(
        model=model,
        embeddings=found.embeddings,
        blocks=found.blocks[:first],
        above=found.blocks[first],
        modules=_below(found, first),
    )


def _touched(attached: Attached, found: Blocks) -> list[str]:
    """Return the paths within the body of all slots there, and of what they stand by."""
    own = {id(bound.parameter) for bound in attached.bound}
    paths = [name for name, parameter in found.body.named_parameters(remove_duplicate=False) if id(parameter) in own]
    prefix = f"{found.path}." if found.path else ""
    names = (name for bound in attached.bound for name in (bound.slot.name, bound.slot.group))
    return [*paths, *(name.removeprefix(prefix) for name in names if name.startswith(prefix))]


def _place(path: str, found: Blocks) -> int:
    """Return the block that a path within the body is in: -1 before the first, their number after the last."""
    inside = (index for index, prefix in enumerate(found.prefixes) if f"{path}.".startswith(prefix))
    return next(inside, len(found.blocks) if _within(path, found.after) else -1)


def _below(found: Blocks, first: int) -> tuple[nn.Module, ...]:
    above = (*found.after, *(prefix.rstrip(".") for prefix in found.prefixes[first:]))
    return tuple(module for name, module in found.body.named_modules() if name and not _within(name, above))


def _within(path: str, modules: Sequence[str]) -> bool:
    return any(f"{path}.".startswith(f"{module}.") for module in modules)


def _passed(states: Tensor, *_: Any, **__: Any) -> Tensor:
    return states


def _reached(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(args[0] if args else kwargs["hidden_states"])
