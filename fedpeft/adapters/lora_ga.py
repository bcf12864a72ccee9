"""LoRA whose first step moves the weight as the full gradient would, as far as rank 2 r can.

Wang, Yu, Li: LoRA-GA: Low-Rank Adaptation with Gradient Approximation (2024), arXiv 2407.05000. G is the mean
gradient of the weight over public examples, G = U diag(S) Vt. A0 = c V_{1..r}^T and B0 = c U_{r+1..2r}, without
singular values, with c = d_out^(1/4) / sqrt(gamma); the frozen weight is W - s B0 A0, s = alpha / sqrt(r). The first
step of plain descent then moves the weight along B0 B0^T G + G A0^T A0, the best approximation of G of rank 2 r.

peft's method of that name multiplies B0 by singular values and decomposes at random: it is not used. Here the server
decomposes once, in float64. The rate that suits it is nearer to that of full fine-tuning than to LoRA's. Gradients
have no bound, so they are taken of public data only. Averaging, floats a round and files are LoRA's (``_started``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters._started import Factors, Started, StartedOptions
from fedpeft.adapters._svd import svd
from fedpeft.adapters._targets import features, matching
from fedpeft.adapters.calibration import Batch, Calibrator, Losses, Statistics
from fedpeft.errors import UnsupportedError
from fedpeft.tensors import Tensors

__all__ = ["LoraGa", "Options", "make"]


@final
class Options(StartedOptions):
    """Options of LoRA-GA."""

    alpha: float = Field(default=16.0, gt=0)
    """The update is scaled by alpha / sqrt(r)."""
    gamma: float = Field(default=16.0, gt=0)
    """The larger, the smaller the factors at the start."""


@final
@dataclass(frozen=True, kw_only=True)
class LoraGa(Started):
    """LoRA-GA, hosted by peft's LoRA."""

    options: Options
    name = "lora_ga"

    def stabilised(self) -> bool:
        """Return that the scale is alpha / sqrt(r)."""
        return True

    def calibrator(self) -> Calibrator:
        """Return what sums gradients of the targets' weights."""
        return _Gradients(self.options.target_modules)

    def factors(
        self, layers: Mapping[str, nn.Module], scale: float, statistics: Statistics | None
    ) -> Mapping[str, Factors]:
        """Return singular vectors of the mean gradient: the first r on the right, the next r on the left.

        Raises:
            UnsupportedError: a weight has fewer than 2 r of them, or no statistics were given.
        """
        if statistics is None:
            raise UnsupportedError("lora_ga is planned from gradients of public examples, and none were given")
        mean = statistics.mean()
        return {path: self._aligned(path, layer, mean) for path, layer in layers.items()}

    def _aligned(self, path: str, layer: nn.Module, mean: Tensors) -> Factors:
        rank, (d_in, d_out) = self.options.rank, features(layer)
        if 2 * rank > (least := min(d_in, d_out)):
            raise UnsupportedError(f"adapter.rank = {rank}: expected <= {least // 2}, half the lesser side of {path!r}")
        found, size = svd(mean[path]), d_out**0.25 / self.options.gamma**0.5
        return Factors(b=size * found.u[:, rank : 2 * rank], a=size * found.vt[:rank])


def make(options: Options) -> LoraGa:
    """Return LoRA-GA."""
    return LoraGa(options=options)


@final
@dataclass(frozen=True)
class _Gradients(Calibrator):
    """Sums, over examples, of the gradient of each target's weight, (d_out, d_in), float64."""

    target_modules: tuple[str, ...] | None

    def observe(self, model: nn.Module, batch: Batch, losses: Losses) -> Statistics:
        """Return the gradient of the batch's summed loss."""
        layers = {path: model.get_submodule(path) for path in matching(model, self.target_modules)}
        weights = [layer.get_parameter("weight") for layer in layers.values()]
        trained = [weight.requires_grad for weight in weights]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            found = losses(model, batch)
            gradients = torch.autograd.grad(found.sum(), weights)
        finally:
            for weight, before in zip(weights, trained, strict=True):
                weight.requires_grad_(before)
        named = zip(layers.items(), gradients, strict=True)
        sums = {path: (g.T if isinstance(layer, Conv1D) else g).to("cpu", torch.float64) for (path, layer), g in named}
        return Statistics(sums=Tensors(sums), num_examples=len(found))
