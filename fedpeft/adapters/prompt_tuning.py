"""Trained vectors before the embeddings of a text, or among the patches of an image; cannot be merged.

Lester, Al-Rfou, Constant: The Power of Scale for Parameter-Efficient Prompt Tuning (2021), arXiv 2104.08691: the
frozen model reads [P; E], P (p, d) trained, E the embedded text. For ViT the shallow form of Jia, Tang, Chen, Cardie,
Belongie, Hariharan, Lim: Visual Prompt Tuning (2022), arXiv 2203.12119: [class, P, E] behind the embeddings, P without
positions.

Positions of the text go on from p; its mask is extended by ones. Of the body's last hidden states only the real tokens'
are returned: logits and labels keep their length, BERT's pooler looks at the real [CLS] (peft's looks at P), and the
last token that is no padding is found as before. Other outputs that were asked for (all hidden states, attentions) hold
P too. A cache that a model generates with holds P once.

``random`` draws from U(-0.5, 0.5) for text, as the paper, and from U(-v, v), v^2 = 6 / (3 s^2 + d), s the side of a
patch, for images, as theirs. ``vocabulary`` starts at the embeddings of tokens drawn from the first 5,000. The model
does not start as its base. NONLINEAR: averaging makes no claim beyond that of FedAvg. p d floats a round.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpeft.adapters._prompts import NAME, Prompts, body_of, kind_of
from fedpeft.adapters._targets import planned
from fedpeft.adapters.base import Adapter, Algebra, Attached, Bound, GradientSupport, Slot, freeze
from fedpeft.adapters.calibration import Statistics
from fedpeft.adapters.plan import Plan
from fedpeft.config.base import Frozen
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import derive, generator

__all__ = ["Options", "PromptTuning", "make"]

_MOST_COMMON = 5000
_BOUND = 0.5


@final
class Options(Frozen):
    """Options of prompt tuning."""

    num_tokens: int = Field(default=8, ge=1)
    """Virtual tokens p; they and the text share the model's positions."""
    init: Literal["random", "vocabulary"] = "random"
    """Drawn from a seed, or the embeddings of tokens drawn from the vocabulary (texts only)."""


@final
@dataclass(frozen=True, kw_only=True)
class PromptTuning(Adapter):
    """Prompt tuning of texts and images, of fedpeft's own making."""

    options: Options

    def plan(self, model: nn.Module, *, seed: int, statistics: Statistics | None = None) -> Plan:
        """Fix the embeddings that are extended, and the seed or the tokens to start at.

        Raises:
            UnsupportedError: the model is of no kind that virtual tokens serve, has too few positions or no vocabulary.
        """
        path, body = body_of(model)
        kind, count = kind_of(body), self.options.num_tokens
        most = getattr(body.config, "max_position_embeddings", None) if kind == "text" else None
        if most is not None and count >= most:
            raise UnsupportedError(f"adapter.num_tokens = {count}: expected < {most}, the model's positions")
        values: dict[str, Any] = {"targets": [_embeddings(model, body)], "body": path, "num_tokens": count}
        drawn = derive(seed, "prompt_tuning")
        if self.options.init == "random":
            return Plan(adapter="prompt_tuning", values={**values, "seed": drawn})
        if kind == "image":
            raise UnsupportedError("adapter.init = 'vocabulary': images have none; use 'random'")
        known = min(_MOST_COMMON, len(body.get_input_embeddings().weight))
        tokens = torch.randint(known, (count,), generator=generator(drawn))
        return Plan(adapter="prompt_tuning", values={**values, "tokens": tokens.tolist()})

    def attach(self, model: nn.Module, plan: Plan) -> Attached:
        """Freeze the model and put the virtual tokens in."""
        planned(model, plan.values["targets"])
        path, body = plan.values["body"], model.get_submodule(plan.values["body"])
        prompts = Prompts(_start(body, plan.values))
        prompts.install(body)
        freeze(model)
        weight = prompts.weight
        weight.requires_grad_(True)
        prompts.train(model.training)
        group = f"{path}.{NAME}".removeprefix(".")
        slot = Slot(
            name=f"{group}.weight", shape=tuple(weight.shape), algebra=Algebra.NONLINEAR, group=group, role="prompt"
        )
        return Attached(model=model, bound=(Bound(slot, weight),))

    def beside_quantized(self) -> str:
        """Return that nothing hinders: the vectors go in front of the first block."""
        return ""

    def gradients(self) -> GradientSupport:
        """Return that hooks do: the module of the vectors is called with a batch and gives each row its own."""
        return GradientSupport(by="hooks")

    def save(self, attached: Attached, plan: Plan, folder: Path, *, base: str, revision: str | None) -> None:
        """Refuse: peft would compute otherwise from the same vectors.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "peft's prompt tuning pools at a virtual token or at padding, returns logits of virtual tokens too, and "
            "does not serve images, so that its file would give other numbers; use fedpeft's own format"
        )


def make(options: Options) -> PromptTuning:
    """Return prompt tuning."""
    return PromptTuning(options=options)


def _embeddings(model: nn.Module, body: Any) -> str:
    wanted = body.get_input_embeddings()
    paths: dict[int, str] = {id(module): path for path, module in model.named_modules()}
    return paths[id(wanted)]


def _start(body: Any, values: dict[str, Any]) -> Tensor:
    """Return (p, width), float32."""
    if "tokens" in values:
        found: Tensor = body.get_input_embeddings().weight.detach()[values["tokens"]]
        return found.float().clone()
    if kind_of(body) == "image":
        width = body.embeddings.cls_token.shape[-1]
        bound = math.sqrt(6 / (3 * body.embeddings.patch_size**2 + width))
    else:
        width, bound = body.get_input_embeddings().weight.shape[1], _BOUND
    return (2 * torch.rand(values["num_tokens"], width, generator=generator(values["seed"])) - 1) * bound
