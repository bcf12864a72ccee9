"""Handwritten digits, 8 x 8 pixels, bundled with scikit-learn; nothing to download.

1,797 images: the test part of E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from dataclasses import dataclass
from typing import Annotated, Self, final

import numpy
from datasets import Array3D, Dataset, Features, Value
from pydantic import Field, model_validator
from sklearn.datasets import load_digits

from fedpeft.config.base import Frozen
from fedpeft.data.base import Source, Splits
from fedpeft.data.splits import held_out

__all__ = ["Options", "make"]

_WHITE = 16.0
"""The largest pixel value in the bundled file."""


@final
class Options(Frozen):
    """Which digits."""

    classes: tuple[Annotated[int, Field(ge=0, le=9)], ...] = Field(default=tuple(range(10)), min_length=2)
    """The digits to keep, each once; their order is the order of the labels."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the images that is held out."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: expected each digit once")
        return self


@final
@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """Columns ``image`` (float32, 1 x 8 x 8, 0 is paper and 1 is ink) and ``label``."""

    options: Options

    def load(self, *, seed: int) -> Splits:
        """Read the bundled file and split it.

        Raises:
            DataError: the fraction leaves one side without images.
        """
        pixels, digits = load_digits(return_X_y=True)
        kept = numpy.isin(digits, self.options.classes)
        images = (pixels[kept] / _WHITE).astype(numpy.float32).reshape(-1, 1, 8, 8)
        labels = [self.options.classes.index(int(digit)) for digit in digits[kept]]
        features = Features({"image": Array3D((1, 8, 8), "float32"), "label": Value("int64")})
        data = Dataset.from_dict({"image": images, "label": labels}, features=features)
        train, test = held_out(data, fraction=self.options.test_fraction, seed=seed)
        return Splits(train=train, test=test, label_names=tuple(map(str, self.options.classes)))


def make(options: Options) -> Source:
    """Return the source."""
    return Digits(options=options)
