import numpy
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

from fedpeft.data.base import Splits
from fedpeft.data.sources import digits
from fedpeft.errors import DataError


def load(seed: int = 0, **options: object) -> Splits:
    return digits.make(digits.Options.model_validate(options)).load(seed=seed)


def test_every_bundled_image_is_there_once() -> None:
    splits = load()
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    assert splits.label_names == tuple("0123456789")
    images = numpy.concatenate([numpy.asarray(part["image"][:]) for part in (splits.train, splits.test)])
    labels = numpy.concatenate([numpy.asarray(part["label"][:]) for part in (splits.train, splits.test)])
    pixels, expected = load_digits(return_X_y=True)
    assert images.shape == (1797, 1, 8, 8)
    have = sorted((label, *image.ravel().tolist()) for label, image in zip(labels.tolist(), images, strict=True))
    want = sorted((label, *(image / 16).tolist()) for label, image in zip(expected.tolist(), pixels, strict=True))
    assert have == want


def test_pixels_are_float32_between_0_and_1() -> None:
    image = load().train.with_format("numpy")[0]["image"]
    assert image.dtype == numpy.float32
    assert (image.min(), image.max()) == (0.0, 1.0)


def test_labels_of_chosen_classes_are_indexed_anew() -> None:
    splits = load(classes=(7, 1))
    pixels, digit = load_digits(return_X_y=True)
    assert splits.label_names == ("7", "1")
    labels = [*splits.train["label"], *splits.test["label"]]
    assert [labels.count(0), labels.count(1)] == [int((digit == 7).sum()), int((digit == 1).sum())]
    sevens = {tuple((row / 16).tolist()) for row in pixels[digit == 7]}
    first = splits.test[0]
    assert (tuple(numpy.ravel(first["image"]).tolist()) in sevens) == (first["label"] == 0)


def test_the_seed_decides_the_split() -> None:
    assert load(1).test["label"][:] == load(1).test["label"][:]
    assert load(1).test["label"][:] != load(2).test["label"][:]


@pytest.mark.parametrize("classes", [(3,), (3, 3), (3, 10), (-1, 2)])
def test_classes_that_make_no_task_are_refused(classes: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="classes"):
        digits.Options(classes=classes)


def test_an_empty_test_side_is_refused() -> None:
    with pytest.raises(DataError, match="test_fraction"):
        load(test_fraction=1e-6)
