"""LoRA that starts at directions of the weight that the inputs of a task use most, or least.

Yang, Li, Zhou, Song, Wu, Nie, Ghanem: CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for
Task-Aware Parameter-Efficient Fine-Tuning (2024), arXiv 2406.05223. C is the mean of x x^T over the inputs of the
layer on public examples. W C = U diag(S) Vt, so W = U diag(S) (Vt C^-1). ``adapt`` starts at the first r terms, to
learn the task that the examples are of; ``preserve`` at the last r, so that what these examples use stays frozen.

C is scaled to a mean diagonal of one, which the products do not see and which makes the balance of A0 and B0
independent of the number of examples; then lambda I is added, lambda = 0.01 doubled until C C^-1 is the identity to
0.05. The authors' code divides each example by its largest entry and takes one example a batch; here examples count
as they are, in batches of any size, padding left out. Inputs have no bound: public data only. The rest is
``_started``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fedpeft.adapters._started import Factors, Started, StartedOptions, split
from fedpeft.adapters._svd import require_rank, svd, weight_of
from fedpeft.adapters._targets import matching
from fedpeft.adapters.calibration import Batch, Calibrator, Losses, Statistics
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Tensors

__all__ = ["Corda", "Options", "make"]

_DAMPING, _WELL = 0.01, 0.05


@final
class Options(StartedOptions):
    """Options of CorDA."""

    mode: Literal["adapt", "preserve"] = "adapt"
    """Train the directions that the public examples use most (the paper's IPM), or least (its KPM)."""


@final
@dataclass(frozen=True, kw_only=True)
class Corda(Started):
    """CorDA, hosted by peft's LoRA."""

    options: Options
    name = "corda"

    def calibrator(self) -> Calibrator:
        """Return what sums x x^T over the targets' inputs."""
        return _Covariances(self.options.target_modules)

    def factors(
        self, layers: Mapping[str, nn.Module], scale: float, statistics: Statistics | None
    ) -> Mapping[str, Factors]:
        """Return r terms of the decomposition of each weight.

        Raises:
            UnsupportedError: the rank is too large, or no statistics were given.
        """
        if statistics is None:
            raise UnsupportedError("corda is planned from inputs of public examples, and none were given")
        return {path: self._oriented(path, layer, scale, statistics.sums[path]) for path, layer in layers.items()}

    def _oriented(self, path: str, layer: nn.Module, scale: float, total: Tensor) -> Factors:
        rank = self.options.rank
        require_rank(rank, path, layer)
        covariance = damped(total)
        u, s, vt = svd(weight_of(layer) @ covariance)
        vt = torch.linalg.solve(covariance, vt.T).T  # C is symmetric: Vt C^-1 = (C^-1 V)^T
        chosen = slice(rank) if self.options.mode == "adapt" else slice(-rank, None)
        return split(u[:, chosen], s[chosen], vt[chosen], scale)


def make(options: Options) -> Corda:
    """Return CorDA."""
    return Corda(options=options)


def damped(total: Tensor) -> Tensor:
    """Return C (d_in, d_in) of a sum of x x^T, scaled and made well conditioned, float64."""
    size = float(total.diagonal().mean())
    covariance, identity = total / size if size > 0 else total, torch.eye(len(total), dtype=torch.float64)
    damping = _DAMPING
    while True:
        found = covariance + damping * identity
        if float((found @ torch.linalg.inv(found) - identity).norm()) < _WELL:
            return found
        damping *= 2


@final
@dataclass(frozen=True)
class _Covariances(Calibrator):
    """Sums, over the tokens of examples, of x x^T of each target's input, (d_in, d_in), float64."""

    target_modules: tuple[str, ...] | None

    @torch.no_grad()
    def observe(self, model: nn.Module, batch: Batch, losses: Losses) -> Statistics:
        """Return the sums of one batch."""
        sums: dict[str, Tensor] = {}
        handles = [
            model.get_submodule(path).register_forward_pre_hook(_adding(sums, path, batch.get("attention_mask")))
            for path in matching(model, self.target_modules)
        ]
        try:
            num_examples = len(losses(model, batch))
        finally:
            for handle in handles:
                handle.remove()
        return Statistics(sums=Tensors(sorted(sums.items())), num_examples=num_examples)


def _adding(sums: dict[str, Tensor], path: str, mask: Tensor | None) -> Callable[[nn.Module, Any], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tokens = inputs[0]
        kept = tokens[mask.bool()] if mask is not None and tokens.shape[:-1] == mask.shape else tokens
        rows = kept.reshape(-1, kept.shape[-1]).to("cpu", torch.float64)
        sums[path] = sums.get(path, 0) + rows.T @ rows

    return hook
