"""A few inputs of every neuron train, those that weigh most; merged at no cost.

Zhang, Hou, Yin, Guo, Ma, Chen, Huang: NeuroAda: Activating Each Neuron's Potential for Parameter-Efficient
Fine-Tuning (2025), arXiv 2510.18940. In each row of W the k entries of largest size, ties by the lowest index, get an
addend: W'[o, i_oj] = W[o, i_oj] + v_oj, with v (d_out, k) zero at first. The indices are chosen once by the server
and travel in the plan, never in rounds: k d_out floats a layer and direction.

LINEAR: with the indices fixed the mean of v gives exactly the mean of weights. The authors' code has a variant that
adds the bias twice; it has no place here.
"""

from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters import _reparam
from fedpeft.adapters._svd import weight_of
from fedpeft.adapters._targets import features, matching
from fedpeft.adapters.base import Adapter, Algebra, Attached, GradientSupport
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Tensors

__all__ = ["NeuroAda", "Options", "make"]


@final
class Options(Frozen):
    """Options of NeuroAda."""

    inputs: int = Field(default=4, ge=1)
    """How many inputs k of each neuron train."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class NeuroAda(Adapter):
    """Addends on the largest weights of each neuron."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Choose the inputs of each neuron; nothing is random."""
        layers = {path: model.get_submodule(path) for path in matching(model, self.options.target_modules)}
        for path, layer in layers.items():
            if self.options.inputs > (have := features(layer)[0]):
                raise UnsupportedError(
                    f"adapter.inputs = {self.options.inputs}: expected <= {have}, the inputs of {path!r}"
                )
        chosen = {path: largest(weight_of(layer), self.options.inputs) for path, layer in layers.items()}
        return Plan(adapter="neuroada", values={"targets": list(layers)}, tensors=Tensors(chosen))

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Put addends of zero where the plan says."""
        return _reparam.reparametrise(model, plan, lambda path, _: _Addends(plan.tensors[path]), algebra=Algebra.LINEAR)

    def gradients(self) -> GradientSupport:
        """Return that hooks see no batch."""
        return _reparam.BY_VMAP

    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with the addends in its weights."""
        return _reparam.merge(attached)


def make(options: Options) -> NeuroAda:
    """Return NeuroAda."""
    return NeuroAda(options=options)


def largest(weight: Tensor, number: int) -> Tensor:
    """Return the columns (d_out, number) of each row's largest entries in size, rising; ties go to the lowest."""
    order = weight.abs().sort(dim=1, descending=True, stable=True).indices
    return order[:, :number].sort(dim=1).values


@final
class _Addends(nn.Module):
    def __init__(self, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("columns", columns, persistent=False)
        self.addends = nn.Parameter(torch.zeros(columns.shape))

    def forward(self, weight: Tensor) -> Tensor:
        """Map (d_out, d_in) to (d_out, d_in)."""
        return weight.scatter_add(1, self.get_buffer("columns"), self.addends)
