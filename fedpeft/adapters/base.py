"""What an adapter is: a plan made once by the server, slots that train and travel, and a merge or a refusal.

What travels is the set of slots, never what a library's state dict happens to hold.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fedpeft.adapters.calibration import Calibrator, Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.adapters.slots import Algebra, Pair, Slot, pairs
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Spec, Tensors

__all__ = [
    "Adapter",
    "Algebra",
    "Attached",
    "Bound",
    "GradientSupport",
    "Pair",
    "Penalty",
    "Shifted",
    "Slot",
    "Step",
    "freeze",
    "head_bounds",
    "pairs",
]


@final
@dataclass(frozen=True)
class Bound:
    """A slot and the live parameter it names."""

    slot: Slot
    parameter: nn.Parameter


@final
@dataclass(frozen=True, kw_only=True)
class Penalty:
    """Regularisers an adapter adds to the loss, apart by whether they look at data."""

    per_sample: Tensor | None = None
    """Shape (batch,): one term a sample, so that per-sample clipping stays right."""
    data_free: Tensor | None = None
    """A scalar of the parameters alone: its gradient is added after clipping and noise, and costs no privacy."""


@final
@dataclass(frozen=True, kw_only=True)
class GradientSupport:
    """How gradients of single examples, which example-level privacy clips one by one, are had of a method."""

    by: Literal["hooks", "vmap", "refused"]
    """``hooks``: layer by layer as Opacus does; ``vmap``: by torch.func, since hooks would be wrong; or not at all."""
    reason: str = ""
    """Why hooks would be wrong, or why the method is refused."""

    def __post_init__(self) -> None:
        """Require a reason wherever the plain way is not taken."""
        if (self.by == "hooks") == bool(self.reason):
            raise ValueError(f"gradients by {self.by!r}: expected a reason for all but 'hooks', got {self.reason!r}")


@final
@dataclass(frozen=True, kw_only=True)
class Step:
    """Where training stands after an optimizer step."""

    progress: float
    """Share of the whole federation's training that is done, in (0, 1]."""
    learning_rate: float
    """Of this round."""


@final
@dataclass(frozen=True, kw_only=True)
class Shifted:
    """A frozen weight that now is base + residual."""

    base: Tensor
    """W as it was loaded, in the layer's own orientation."""
    residual: Tensor
    """(d_out, d_in), float32 on the CPU."""


@final
@dataclass(frozen=True, kw_only=True)
class Attached:
    """A model with its adapter in place: the only door to the trainable state."""

    model: nn.Module
    bound: tuple[Bound, ...]
    handle: Any = field(default=None, repr=False)
    """The method's own object, if it needs one to merge."""
    shifts: dict[str, "Shifted"] = field(default_factory=dict, repr=False)
    """Group -> what Adapter.shift did to its frozen weight; empty where it never did."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, in a fixed order that both sides derive alike."""
        return tuple(bound.slot for bound in self.bound)

    def with_bound(self, extra: Iterable[Bound]) -> "Attached":
        """Return the same with further slots, for example a task's head."""
        return Attached(model=self.model, bound=(*self.bound, *extra), handle=self.handle, shifts=self.shifts)

    def manifest(self) -> tuple[Spec, ...]:
        """Return what travels: name, shape and dtype of each exchanged slot."""
        return tuple(slot.spec for slot in self.slots if slot.travels)

    def read(self) -> Tensors:
        """Return a copy of the exchanged slots, float32 on the CPU."""
        return Tensors(
            (bound.slot.name, bound.parameter.detach().to("cpu", torch.float32, copy=True))
            for bound in self.bound
            if bound.slot.travels
        )

    @torch.no_grad()
    def write(self, tensors: Tensors) -> None:
        """Set the exchanged slots.

        Raises:
            TensorMismatchError: names, shapes or dtypes are not exactly this adapter's; nothing is written.
        """
        tensors.require(self.manifest(), where="adapter")
        for bound in self.bound:
            if bound.slot.travels:
                bound.parameter.copy_(tensors[bound.slot.name])

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return slot name -> live parameter, of all slots that train."""
        return {bound.slot.name: bound.parameter for bound in self.bound if bound.parameter.requires_grad}


class Adapter(ABC):
    """One parameter-efficient method. Concrete classes are final and hold only their options."""

    @abstractmethod
    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Decide, on the server only, all that must be equal everywhere (targets, ranks, seeds, factors).

        ``statistics`` are those of the method's calibrator, and None where it has none.

        Raises:
            InputError: the method cannot serve this model; names what is there.
        """

    def calibrator(self) -> Calibrator | None:
        """Return what looks at examples before the plan is made; None where the plan needs no data."""
        return None

    @abstractmethod
    def gradients(self) -> GradientSupport:
        """Return how gradients of single examples are had; the conformance suite holds it against a loop."""

    def beside_quantized(self) -> str:
        """Return why the method cannot be put beside frozen weights of 4 or 8 bits; empty where it can."""
        return "it computes with the frozen weights, or trains some of them"

    @abstractmethod
    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Freeze the model, put the adapter in as planned, in place. Equal plans give equal bits everywhere."""

    def alone(self) -> str | None:
        """Return why clients cannot be trained side by side with this method; by default they can, if it is proved.

        They can where each trained parameter is used by a layer that is called with one tensor (batch, ...), penalties
        look at parameters alone, and what ``after_step`` changes are those that train.
        """
        return None

    def penalty(self, attached: Attached) -> Penalty:
        """Return the regulariser at the current parameters; none by default."""
        return Penalty()

    def after_step(self, attached: Attached, step: Step) -> None:
        """Change the parameters in place after an optimizer step, looking at nothing but them; nothing by default."""

    def retract(self, slots: Sequence[Slot], adapter: Tensors) -> Tensors:
        """Return the aggregate brought back to where the method's parameters live, on the server; as it is by default.

        A function of the aggregate alone: under DP it costs nothing.
        """
        return adapter

    def shift(self, attached: Attached, residuals: Mapping[str, Tensor]) -> None:
        """Set frozen weights to W + residual, group -> (d_out, d_in); W is kept, so each call starts from it anew.

        Merging and saving then hold the residual too.

        Raises:
            TensorMismatchError: not exactly the adapted groups, or another shape; nothing is written.
            UnsupportedError: the method does not let a strategy change its frozen weights.
        """
        raise UnsupportedError(
            f"adapter {type(self).__name__} keeps its frozen weights as they are, and the strategy adds a residual to "
            "them; use adapter 'lora'"
        )

    def scaled(self, attached: Attached, factor: float) -> AbstractContextManager[None]:
        """Multiply the scale of every A/B pair inside the block and restore it after; 1 asks for nothing.

        Raises:
            UnsupportedError: the method has no scale that can be changed.
        """
        if factor != 1.0:
            raise UnsupportedError(f"adapter {type(self).__name__} has no scale that can be changed; use 'lora'")
        return nullcontext()

    def merge(self, attached: Attached) -> nn.Module:
        """Fold the adapter into plain weights and return the plain model; the attached model is used up.

        Raises:
            UnsupportedError: the method has no plain equivalent.
        """
        raise UnsupportedError(f"adapter {type(self).__name__} cannot be merged into plain weights: it adds modules")

    def store(self, attached: Attached, plan: Plan, folder: Path) -> None:
        """Write beside the adapter whatever smaller form the method gives adapted weights; nothing by default."""

    def save(self, attached: Attached, plan: Plan, folder: Path, *, base: str, revision: str | None) -> None:
        """Write the adapter in HF PEFT format.

        Raises:
            UnsupportedError: peft does not have the method; the caller keeps fedpeft's own format alone.
        """
        raise UnsupportedError(f"adapter {type(self).__name__} is not a method of peft")


def freeze(model: nn.Module) -> nn.Module:
    """Stop every parameter from training and return the model."""
    return model.requires_grad_(False)


def head_bounds(model: nn.Module, modules: Iterable[str]) -> tuple[Bound, ...]:
    """Return the head modules' parameters as slots; a linear head averages exactly.

    Shapes are the module's own, for example (num_labels, hidden) and (num_labels,).

    Raises:
        UnsupportedError: the model has no such module; names those at its top.
    """
    modules, found = tuple(modules), dict(model.named_modules())
    if missing := [module for module in modules if module not in found]:
        top = ", ".join(name for name, _ in model.named_children())
        raise UnsupportedError(f"{type(model).__name__} has no head {missing[0]!r}; at its top are: {top}")
    return tuple(
        _head(f"{module}.{name}", parameter)
        for module in modules
        for name, parameter in found[module].named_parameters()
    )


def _head(name: str, parameter: nn.Parameter) -> Bound:
    parameter.requires_grad_(True)
    group = name.rpartition(".")[0]
    slot = Slot(name=name, shape=tuple(parameter.shape), algebra=Algebra.LINEAR, group=group, role="head")
    return Bound(slot, parameter)
