"""Weights in a few bits, of which only the scales train: the smallest update there is.

Kim, Lee, Kim, Park, Yoo, Kwon, Lee: Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit
Integer Quantization (2023), arXiv 2305.14152. Each row of W, or each group of g of its inputs, is rounded to the
nearest of 2^b levels between its least and its greatest entry: s = (max - min) / (2^b - 1), z = round(-min / s), q =
clamp(round(W / s) + z, 0, 2^b - 1). The adapted weight is W' = s (q - z); q and z stay and s trains, (d_out, d_in /
g).

So the adapted model starts as its base rounded, not as its base. Codes are computed in float64 from the same weights
everywhere, by operations that IEEE 754 rounds alike; their hash is in the plan and a client that differs is refused.
LINEAR in s: the mean of scales gives exactly the mean of weights. Merged weights are floats that lie on the grids;
beside the adapter lie the same weights as packed codes, b / 16 of what they take in float16, with their scales.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters import _reparam
from fedpeft.adapters._packed import write_weights
from fedpeft.adapters._svd import weight_of
from fedpeft.adapters._targets import features, matching
from fedpeft.adapters.base import Adapter, Algebra, Attached, GradientSupport
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import raw

__all__ = ["Codes", "Options", "Peqa", "make", "quantised"]

_CODES = "parametrizations.weight.0.function.codes"


@final
class Options(Frozen):
    """Options of PEQA."""

    bits: int = Field(default=4, ge=2, le=8)
    """Of each code."""
    group_size: int | None = Field(default=None, ge=1)
    """Inputs that share a scale; must divide each layer's; a whole row when unset."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to quantise; all of the transformer body when unset."""


class Codes(NamedTuple):
    """A weight as s * (q - z)."""

    scales: Tensor
    """(d_out, num_groups), float32"""
    codes: Tensor
    """q - z, (d_out, d_in), int64: a narrow group far from zero is many steps away"""


@final
@dataclass(frozen=True, kw_only=True)
class Peqa(Adapter):
    """Trained scales of quantised weights."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Quantise, and keep the hash of the codes; nothing is random."""
        layers = {path: model.get_submodule(path) for path in matching(model, self.options.target_modules)}
        for path, layer in layers.items():
            if (have := features(layer)[0]) % (group := self.options.group_size or have):
                raise UnsupportedError(
                    f"adapter.group_size = {group}: expected a divisor of {have}, the inputs of {path!r}"
                )
        values = self.options.model_dump(include={"bits", "group_size"})
        hashes = {path: _hash(quantised(weight_of(layer), **values)) for path, layer in layers.items()}
        return Plan(adapter="peqa", values={**values, "targets": list(layers), "codes": hashes})

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Replace each target's weight by its codes, with the scales that quantising gave.

        Raises:
            UnsupportedError: the codes are not the server's.
        """

        def made(path: str, layer: nn.Module) -> nn.Module:
            found = quantised(weight_of(layer), bits=plan.values["bits"], group_size=plan.values["group_size"])
            if _hash(found) != plan.values["codes"][path]:
                raise UnsupportedError(f"the codes of {path!r} are not those of the plan: another weight or arithmetic")
            return _Scales(found)

        return _reparam.reparametrise(model, plan, made, algebra=Algebra.LINEAR)

    def gradients(self) -> GradientSupport:
        """Return that hooks see no batch."""
        return _reparam.BY_VMAP

    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with weights on their grids."""
        return _reparam.merge(attached)

    def store(self, attached: Attached, plan: Plan, folder: Path) -> None:
        """Write the adapted weights in their few bits."""
        state, paths = attached.read(), plan.values["targets"]
        layers = {path: (attached.model.get_buffer(f"{path}.{_CODES}"), state[f"{path}.scales"]) for path in paths}
        write_weights(folder, layers, bits=plan.values["bits"])


def make(options: Options) -> Peqa:
    """Return PEQA."""
    return Peqa(options=options)


def quantised(weight: Tensor, *, bits: int, group_size: int | None) -> Codes:
    """Round a weight (d_out, d_in), float64, to the nearest level; a group of equal entries is kept as it is."""
    groups = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    least, greatest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    flat, levels = greatest == least, 2**bits - 1
    size = torch.where(least == 0, 1.0, least.abs())
    scales = torch.where(flat, size, (greatest - least) / levels)
    zero = torch.round(-least / scales)
    codes = torch.where(flat, least.sign(), (torch.round(groups / scales) + zero).clamp(0, levels) - zero)
    return Codes(scales.squeeze(-1).to(torch.float32), codes.reshape(weight.shape).to(torch.int64))


def _hash(codes: Codes) -> str:
    return hashlib.sha256(bytes(raw(codes.scales.contiguous())) + bytes(raw(codes.codes.contiguous()))).hexdigest()


@final
class _Scales(nn.Module):
    def __init__(self, found: Codes) -> None:
        super().__init__()
        self.register_buffer("codes", found.codes.to(torch.float32), persistent=False)
        self.scales = nn.Parameter(found.scales)

    def forward(self, weight: Tensor) -> Tensor:
        """Map (d_out, d_in), which is not looked at, to (d_out, d_in)."""
        codes = self.get_buffer("codes")
        groups = codes.reshape(*self.scales.shape, -1) * self.scales[..., None]
        return groups.reshape(weight.shape)
