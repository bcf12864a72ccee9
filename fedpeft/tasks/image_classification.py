"""One label for an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
import torch
from datasets import Array3D, Dataset
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import PreTrainedTokenizerBase

from fedpeft.config.base import Frozen
from fedpeft.errors import DataError, UnsupportedError
from fedpeft.models.head import head_modules
from fedpeft.tasks import _classify, _columns
from fedpeft.tasks._rows import Rows, stacked
from fedpeft.tasks.base import Batch, Examples, Row, Task

__all__ = ["ImageClassification", "Options", "make"]

_CHUNK = 32


@final
class Options(Frozen):
    """How pixels are scaled."""

    mean: float = 0.5
    """Taken from every pixel."""
    std: float = Field(default=0.5, gt=0)
    """Then divided by this; the defaults take [0, 1] to [-1, 1], as vision transformers were trained."""


@final
@dataclass(frozen=True)
class ImageClassification(Task):
    """Columns ``image`` (float, channels x height x width, one shape for all) and ``label``.

    A row has ``pixel_values`` (channels, height, width) and ``label`` (); a batch has ``pixel_values`` and ``labels``
    with the batch dimension first. Images are fitted to the model's size when it reads them, so rows stay small.
    """

    options: Options
    kind = "image_classification"

    def columns(self) -> tuple[str, ...]:
        """Return what must be there."""
        return ("image", "label")

    def encode(self, data: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Scale all pixels at once; the tokenizer is not used.

        Raises:
            DataError: a column is missing, or images are of many shapes or no pixels.
        """
        _columns.require(data, "image")
        pixels = self._scaled(_pixels(data))
        return Rows(num_rows=len(pixels), fixed={"pixel_values": pixels, "label": _columns.labels(data)})

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Stack images and labels."""
        return {"pixel_values": stacked(rows, "pixel_values"), "labels": stacked(rows, "label")}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy of each example, shape (batch,)."""
        return _classify.losses(_logits(model, batch["pixel_values"]), batch["labels"])

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return sums of loss, weight (examples) and correct answers."""
        return _classify.sums(_logits(model, batch["pixel_values"]), batch["labels"])

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return loss (nats an example) and accuracy."""
        return _classify.means(totals)

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """Return the classifier beside the encoder."""
        return head_modules(model)

    @torch.inference_mode()
    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        inputs: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
    ) -> list[str]:
        """Return the label of each input's ``image``; the model is in eval mode.

        Raises:
            DataError: an input lacks it, or images are of many shapes or no pixels.
        """
        device = next(model.parameters()).device
        found: list[str] = []
        for start in range(0, len(inputs), _CHUNK):
            images = _columns.values(inputs[start : start + _CHUNK], "image")
            found += _classify.answers(_logits(model, self._scaled(images).to(device)), labels)
        return found

    def _scaled(self, images: Any) -> Tensor:
        """Return (batch, channels, height, width), float32."""
        try:
            pixels = np.asarray(images, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError("column 'image': expected numbers, channels x height x width, in one shape") from error
        if pixels.ndim != 4:
            raise DataError(f"column 'image': expected channels x height x width, got shape {list(pixels.shape[1:])}")
        if not (finite := np.isfinite(pixels).all(axis=(1, 2, 3))).all():
            raise DataError(f"column 'image', row {finite.argmin()}: missing, or a pixel is not a finite number")
        return torch.from_numpy((pixels - self.options.mean) / self.options.std)


def _pixels(data: Dataset) -> Any:
    """Return all images; where their shape is declared, out of the table's buffers, since row by row takes long."""
    if isinstance(shaped := data.features["image"], Array3D) and None not in shaped.shape:
        chunks = data.select_columns("image").with_format("arrow")[:]["image"].chunks
        numbers = [chunk.storage.flatten().flatten().flatten() for chunk in chunks]
        if not any(part.null_count for part in [*chunks, *numbers]):
            return np.concatenate([part.to_numpy() for part in numbers] or [[]]).reshape(-1, *shaped.shape)
    return data.with_format("numpy")["image"][:]


def _logits(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return (batch, classes)."""
    logits: Tensor = model(pixel_values=_fit(pixels, vars(cast(Any, model).config))).logits
    return logits


def _fit(pixels: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Repeat a single channel and resize, where the model's config asks for it."""
    channels, size = config.get("num_channels", pixels.shape[1]), config.get("image_size", pixels.shape[2:])
    if pixels.shape[1] not in (1, channels):
        raise UnsupportedError(f"the images have {pixels.shape[1]} channels, the model reads {channels}")
    pixels = pixels.expand(-1, channels, -1, -1)
    target = (size, size) if isinstance(size, int) else tuple(size)
    return pixels if tuple(pixels.shape[2:]) == target else interpolate(pixels, target, mode="bilinear", antialias=True)


def make(options: Options) -> Task:
    """Build the task."""
    return ImageClassification(options)
