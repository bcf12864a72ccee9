"""Small two-layer networks in series after attention and feed-forward; cannot be merged.

Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly: Parameter-Efficient Transfer
Learning for NLP (2019), arXiv 1902.00751: y + U f(D y + d) + u on the output y of the layer that brings a sublayer back
to the model's width, before the residual sum. Placement after the feed-forward block alone: Pfeiffer, Kamath, Rückle,
Cho, Gurevych: AdapterFusion (2021), arXiv 2005.00247, as LLM-Adapters places it (Hu et al. 2023, arXiv 2304.01933).

U, u and d start at zero, so the model starts as its base to the bit; D is Kaiming-uniform (He et al. 2022, arXiv
2110.04366) where Houlsby draws all near zero. NONLINEAR: averaging makes no claim beyond that of FedAvg.
"""

import math
from dataclasses import dataclass
from typing import Literal, final

from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters._inserted import insert
from fedpeft.adapters._layouts import layout
from fedpeft.adapters._targets import at_places, features, matching
from fedpeft.adapters.base import Adapter, Algebra, Attached, GradientSupport
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.seeds import derive, isolated

__all__ = ["Bottleneck", "Options", "make"]


@final
class Options(Frozen):
    """Options of bottleneck adapters."""

    size: int = Field(default=64, ge=1)
    """Inner width m; each adapter after a layer of width d trains 2 m d + m + d numbers."""
    activation: Literal["relu", "gelu"] = "relu"
    """Between the two projections."""
    placement: Literal["both", "feed_forward"] = "both"
    """After the attention and the feed-forward block, or after the latter only."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers to follow, instead of the placement."""


@final
@dataclass(frozen=True, kw_only=True)
class Bottleneck(Adapter):
    """Series adapters, of fedpeft's own making."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the layers that are followed, the inner width and the seed of D."""
        return Plan(
            adapter="bottleneck",
            values={
                **self.options.model_dump(include={"size", "activation"}),
                "targets": list(self._targets(model)),
                "seed": derive(seed, "bottleneck"),
            },
        )

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Put one adapter after each target."""
        values = plan.values

        def added(path: str, layer: nn.Module) -> nn.Module:
            width = features(layer)[1]
            with isolated(values["seed"], path):
                return _Adapter(width, size=values["size"], activation=values["activation"])

        bound = insert(model, values["targets"], added, algebra=Algebra.NONLINEAR)
        return Attached(model=model, bound=bound)

    def gradients(self) -> GradientSupport:
        """Return that hooks are right: all is linear layers."""
        return GradientSupport(by="hooks")

    def _targets(self, model: nn.Module) -> tuple[str, ...]:
        if self.options.target_modules is not None:
            return matching(model, self.options.target_modules)
        found = layout(model)
        first = [found.attention_output] if self.options.placement == "both" else []
        return at_places(model, [*first, found.feed_forward_output])


def make(options: Options) -> Bottleneck:
    """Return bottleneck adapters."""
    return Bottleneck(options=options)


@final
class _Adapter(nn.Module):
    """U f(D y + d) + u, with D (m, d) and U (d, m)."""

    def __init__(self, width: int, *, size: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.up = nn.Linear(size, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        inner: Tensor = self.activation(self.down(hidden))
        outputs: Tensor = self.up(inner)
        return outputs
