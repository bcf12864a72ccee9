"""Bottleneck networks before, after or beside layers of a feed-forward block; cannot be merged.

Hu, Wang, Lan, Xu, Lim, Bing, Xu, Poria, Lee: LLM-Adapters: An Adapter Family for Parameter-Efficient Fine-Tuning of
Large Language Models (2023), arXiv 2304.01933. f(h) = U tanh(D h), D (m, n) and U (d_out, m), without biases. In
series, y = W x is followed by y + f(y), n = d_out, or with side = "input" preceded, y = W (x + f(x)), U (d_in, m), n =
d_in; in parallel y = W x + f(x), n = d_in.

All stand by default at the layer that ends the feed-forward block. The paper's best are series on the input side of
Llama's up_proj and gate_proj, and parallel at up_proj and down_proj: name those in target_modules. ``mam`` draws D
Kaiming-uniform and sets U to zero, so the model starts as its base to the bit; ``bert`` draws both from N(0, 0.02^2),
which does not.
NONLINEAR: averaging makes no claim beyond that of FedAvg. m times (n and the rows of U) floats a layer and direction.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self, final

from pydantic import Field, model_validator
from torch import Tensor, nn

from fedpeft.adapters._inserted import Before, Beside, Series, insert
from fedpeft.adapters._layouts import layout
from fedpeft.adapters._targets import at_places, features, matching
from fedpeft.adapters.base import Adapter, Algebra, Attached, GradientSupport
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.seeds import derive, isolated

__all__ = ["LlmAdapters", "Options", "make"]

_STD = 0.02


@final
class Options(Frozen):
    """Options of LLM-Adapters' bottlenecks."""

    form: Literal["series", "parallel"] = "series"
    """Through the layer's output or input, with a residual; or beside the layer."""
    side: Literal["output", "input"] = "output"
    """Of a layer, where one in series stands."""
    size: int = Field(default=64, ge=1)
    """Inner width m."""
    init: Literal["mam", "bert"] = "mam"
    """Start as the base exactly, or near it."""
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ends of the names of the linear layers; those that end a feed-forward block when unset."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.form == "parallel" and self.side == "input":
            raise ValueError(
                "side = 'input' is of form = 'series'; one in parallel stands beside the layer, leave it away"
            )
        return self


@final
@dataclass(frozen=True, kw_only=True)
class LlmAdapters(Adapter):
    """Series and parallel bottlenecks, of fedpeft's own making."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix layers, form, inner width and the seed of what is drawn."""
        given = self.options.target_modules
        paths = matching(model, given) if given else at_places(model, [layout(model).feed_forward_output])
        values = self.options.model_dump(include={"form", "side", "size", "init"})
        return Plan(
            adapter="llm_adapters", values={**values, "targets": list(paths), "seed": derive(seed, "llm_adapters")}
        )

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Put one bottleneck at each target."""
        values = plan.values
        wrap = Beside if values["form"] == "parallel" else Before if values["side"] == "input" else Series

        def added(path: str, layer: nn.Module) -> nn.Module:
            d_in, d_out = features(layer)
            with isolated(values["seed"], path):
                return _Bottleneck(
                    d_out if wrap is Series else d_in,
                    values["size"],
                    d_in if wrap is Before else d_out,
                    init=values["init"],
                )

        return Attached(
            model=model, bound=insert(model, values["targets"], added, algebra=Algebra.NONLINEAR, wrap=wrap)
        )

    def gradients(self) -> GradientSupport:
        """Return that hooks are right: all is linear layers."""
        return GradientSupport(by="hooks")


def make(options: Options) -> LlmAdapters:
    """Return LLM-Adapters' bottlenecks."""
    return LlmAdapters(options=options)


@final
class _Bottleneck(nn.Module):
    """U tanh(D h)."""

    def __init__(self, d_in: int, size: int, d_out: int, *, init: str) -> None:
        super().__init__()
        self.down = nn.Linear(d_in, size, bias=False)
        self.up = nn.Linear(size, d_out, bias=False)
        if init == "mam":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.normal_(self.down.weight, std=_STD)
            nn.init.normal_(self.up.weight, std=_STD)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        inner: Tensor = self.down(hidden)
        outputs: Tensor = self.up(inner.tanh())
        return outputs
