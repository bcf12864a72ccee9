"""Whole heads and channels train, as dense columns of the layers that bring them back; merged at no cost.

Yang, Leng, Guo, Zhao, Nakada, Zhang, Yao, Chen: S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by
Structured Sparsity (2024), arXiv 2412.06289. In every block some attention heads and some feed-forward channels are
drawn; of the attention's and the feed-forward's output layers the columns that read them train: W'[:, c] = W[:, c] +
S, S (d_out, n) zero at first. This is the form of the paper's recommended setting. With ``inner`` also the rows train
that make the chosen channels (up and gate): W'[c, :] = W[c, :] + S, S (n, d_in). Query, key and value stay frozen.

The authors permute coupled weights so that the chosen stand side by side; that is for speed, does not change the
function, and is not done here: columns are indexed. The server draws from the plan's seed; the indices travel in the
plan. LINEAR: with places fixed the mean of S gives exactly the mean of weights. d_out n floats a layer and direction,
d_in n of inner rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters import _reparam
from fedpeft.adapters._layouts import Layout, layout
from fedpeft.adapters._targets import at_places, features
from fedpeft.adapters.base import Adapter, Algebra, Attached, GradientSupport
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import derive, generator
from fedpeft.tensors import Tensors

__all__ = ["Options", "S2ft", "make"]


@final
class Options(Frozen):
    """Options of S2FT."""

    heads: float = Field(default=0.05, ge=0, le=1)
    """Share of each block's attention heads whose columns train, at least one head; 0 for none."""
    channels: float = Field(default=0.02, ge=0, le=1)
    """Share of each block's feed-forward channels whose columns train, at least one channel; 0 for none."""
    inner: bool = False
    """Train also the rows that make these channels."""


@final
@dataclass(frozen=True, kw_only=True)
class S2ft(Adapter):
    """Dense columns of chosen heads and channels."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Draw heads and channels of each block from the seed."""
        found, number = layout(model), _num_heads(model)
        parts = [
            (found.attention_output, self.options.heads, number),
            (found.feed_forward_output, self.options.channels, 0),
        ]
        chosen = {
            path: _columns(features(model.get_submodule(path))[0], share, units, seed=derive(seed, "s2ft", path))
            for place, share, units in parts
            if share
            for path in at_places(model, [place])
        }
        if not chosen:
            raise UnsupportedError("adapter.heads = 0 and adapter.channels = 0: nothing would train; raise either")
        rows = self._rows(model, found, chosen) if self.options.inner else {}
        ordered = [path for path, _ in model.named_modules() if path in {**chosen, **rows}]
        return Plan(adapter="s2ft", values={"targets": ordered, "rows": [*rows]}, tensors=Tensors({**chosen, **rows}))

    def _rows(self, model: nn.Module, found: Layout, chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return layer -> rows that make the chosen channels of its block.

        Raises:
            UnsupportedError: no channels are chosen, or the model makes them and their gates in one layer.
        """
        feeding = at_places(model, found.feed_forward_input)
        if not self.options.channels or not feeding:
            raise UnsupportedError(
                f"adapter.inner = true: expected channels > 0 (channels = {self.options.channels}) and a model whose "
                "feed-forward channels have layers of their own; leave it out"
            )
        blocks = {path.removesuffix(found.feed_forward_output): path for path in chosen}
        return {
            path: chosen[blocks[path.removesuffix(place)]]
            for place in found.feed_forward_input
            for path in at_places(model, [place])
        }

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Put addends of zero on the planned columns and rows."""

        def made(path: str, layer: nn.Module) -> nn.Module:
            d_in, d_out = features(layer)
            axis, across = (0, d_in) if path in plan.values["rows"] else (1, d_out)
            return _Lines(plan.tensors[path], axis, across)

        return _reparam.reparametrise(model, plan, made, algebra=Algebra.LINEAR)

    def gradients(self) -> GradientSupport:
        """Return that hooks see no batch."""
        return _reparam.BY_VMAP

    def merge(self, attached: Attached) -> nn.Module:
        """Return the plain model with the addends in its weights."""
        return _reparam.merge(attached)


def make(options: Options) -> S2ft:
    """Return S2FT."""
    return S2ft(options=options)


def _num_heads(model: nn.Module) -> int:
    return int(model.config.num_attention_heads)  # type: ignore[union-attr, arg-type]


def _columns(width: int, share: float, units: int, *, seed: int) -> Tensor:
    """Return the rising columns of a share of the units, each as many columns wide; of single columns for 0 units."""
    units = units or width
    number, wide = max(1, round(share * units)), width // units
    drawn = torch.randperm(units, generator=generator(seed, "units"))[:number].sort().values
    return (drawn[:, None] * wide + torch.arange(wide)).flatten()


@final
class _Lines(nn.Module):
    """Addends of some rows (axis 0) or columns (axis 1), each ``across`` long."""

    def __init__(self, places: Tensor, axis: int, across: int) -> None:
        super().__init__()
        self.register_buffer("places", places, persistent=False)
        self.axis = axis
        self.addends = nn.Parameter(torch.zeros((len(places), across) if axis == 0 else (across, len(places))))

    def forward(self, weight: Tensor) -> Tensor:
        """Map (d_out, d_in) to (d_out, d_in)."""
        return weight.index_add(self.axis, self.get_buffer("places"), self.addends)
