"""A few coefficients of the update's Fourier transform train; merged at no cost.

Gao, Wang, Chen, Liu, Wu, Chen, Li: Parameter-Efficient Fine-Tuning with Discrete Fourier Transform (2024), arXiv
2405.03003. W' = W + scale * Re(F^-1(C)), F^-1 the two-dimensional inverse transform and C (d_out, d_in) zero but for
n coefficients at entries that the server draws; layers of one shape share the entries, which travel in the plan.

LINEAR: with the entries fixed the mean of coefficients gives exactly the mean of weights. n floats a layer and
direction, whatever its size. The authors draw the coefficients at first; here they start at zero, so the model starts
as its base.
"""

from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters import _reparam
from fedpeft.adapters._targets import features, matching
from fedpeft.adapters.base import Adapter, Algebra, Attached, GradientSupport
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import generator
from fedpeft.tensors import Tensors

__all__ = ["FourierFt", "Options", "make"]


@final
class Options(Frozen):
    """Options of FourierFT."""

    entries: int = Field(default=1000, ge=1)
    """Coefficients n of each layer."""
    scale: float = Field(default=150.0, gt=0)
    """Of the update."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to adapt; all of the transformer body when unset."""


@final
@dataclass(frozen=True, kw_only=True)
class FourierFt(Adapter):
    """FourierFT."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Draw the entries of each shape from the seed."""
        paths = matching(model, self.options.target_modules)
        sides = {path: features(model.get_submodule(path)) for path in paths}
        chosen = {path: self._entries(path, *sides[path], seed) for path in paths}
        values = {"targets": list(paths), "scale": self.options.scale}
        return Plan(adapter="fourierft", values=values, tensors=Tensors(chosen))

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Put coefficients of zero at the planned entries."""
        scale = plan.values["scale"]
        return _reparam.reparametrise(
            model, plan, lambda path, _: _Spectrum(plan.tensors[path], scale), algebra=Algebra.LINEAR
        )

    def gradients(self) -> GradientSupport:
        """Return that hooks see no batch."""
        return _reparam.BY_VMAP

    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with the update in its weights."""
        return _reparam.merge(attached)

    def _entries(self, path: str, d_in: int, d_out: int, seed: int) -> Tensor:
        """Return n rising indices into the flattened (d_out, d_in)."""
        number = self.options.entries
        if number > d_in * d_out:
            raise UnsupportedError(f"adapter.entries = {number}: expected <= {d_in * d_out}, the entries of {path!r}")
        drawn = torch.randperm(d_in * d_out, generator=generator(seed, "fourierft", d_out, d_in))
        return drawn[:number].sort().values


def make(options: Options) -> FourierFt:
    """Return FourierFT."""
    return FourierFt(options=options)


@final
class _Spectrum(nn.Module):
    def __init__(self, entries: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("entries", entries, persistent=False)
        self.coefficients = nn.Parameter(torch.zeros(len(entries)))

    def forward(self, weight: Tensor) -> Tensor:
        """Map (d_out, d_in) to (d_out, d_in)."""
        flat = weight.new_zeros(weight.numel()).scatter(0, self.get_buffer("entries"), self.coefficients)
        update: Tensor = torch.fft.ifft2(flat.reshape(weight.shape)).real
        return weight + self.scale * update
