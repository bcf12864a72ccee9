"""Classification of images: small ones, resized ones, and the right errors."""

from collections.abc import Callable

import pytest
import torch
from datasets import Array3D, Dataset, Features, Value

from fedpeft.errors import DataError, UnsupportedError
from fedpeft.models import tiny
from fedpeft.models.base import Kind, Loaded, Wanted
from fedpeft.tasks.image_classification import Options, make

Load = Callable[[str, Kind], Loaded]
KIND: Kind = "image_classification"


def vit(**sizes: int) -> Loaded:
    options = tiny.Options.model_validate({"architecture": "vit", **sizes})
    return tiny.make(options).load(Wanted(kind=KIND, label_names=("a", "b", "c"), seed=0))


def test_8x8_single_channel_images_go_into_a_vit(load: Load, data: Dataset) -> None:
    loaded, task = load("vit", KIND), make(Options())

    rows = task.encode(data, loaded.tokenizer)
    batch = task.collate(rows[:3])
    totals = task.score(loaded.model, batch)

    assert batch["pixel_values"].shape == (3, 1, 8, 8)
    assert batch["pixel_values"].dtype == torch.float32
    assert task.head(loaded.model) == ("classifier",)
    assert totals["weight"] == 3
    assert totals["loss"] == pytest.approx(float(task.losses(loaded.model, batch).detach().sum()), rel=1e-6)


def test_pixels_are_scaled() -> None:
    data = Dataset.from_dict({"image": [[[[0.0, 0.25], [0.5, 1.0]]]], "label": [0]})

    (row,) = make(Options()).encode(data, None)
    (other,) = make(Options(mean=0.25, std=0.25)).encode(data, None)

    assert row["pixel_values"].tolist() == [[[-1.0, -0.5], [0.0, 1.0]]]
    assert other["pixel_values"].tolist() == [[[-1.0, 0.0], [1.0, 3.0]]]


@pytest.mark.parametrize("picked", [None, [], [3, 0, 2, 2]], ids=["whole", "none", "rows"])
@pytest.mark.parametrize("first", [1, None])
def test_a_declared_shape_reads_the_same(data: Dataset, picked: list[int] | None, first: int | None) -> None:
    plain = data.select_columns(["image", "label"])
    declared = plain.cast(Features({"image": Array3D((first, 8, 8), "float32"), "label": Value("int64")}))
    if picked is not None:
        plain, declared = plain.select(picked), declared.select(picked)
    expected = [torch.tensor(image) * 2 - 1 for image in plain["image"][:]]

    assert len(expected) == (len(data) if picked is None else len(picked))
    if not expected and first is None:
        return  # nothing says what shape none of them has
    for row, image in zip(make(Options()).encode(declared, None), expected, strict=True):
        assert torch.equal(row["pixel_values"], image)


def test_an_image_that_is_missing_is_refused() -> None:
    features = Features({"image": Array3D((1, 2, 2), "float32"), "label": Value("int64")})
    data = Dataset.from_dict({"image": [[[[0.0, 1.0], [1.0, 0.0]]], None], "label": [0, 1]}, features=features)
    with pytest.raises(DataError, match="column 'image', row 1: missing, or a pixel is not a finite number"):
        make(Options()).encode(data, None)


def test_a_larger_model_with_colours_reads_them_too(data: Dataset) -> None:
    loaded, task = vit(image_size=16, num_channels=3), make(Options())
    batch = task.collate(task.encode(data, None))
    large = torch.nn.functional.interpolate(
        batch["pixel_values"].repeat(1, 3, 1, 1), (16, 16), mode="bilinear", antialias=True
    )

    logits = loaded.model(pixel_values=large).logits

    expected = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    assert torch.allclose(task.losses(loaded.model, batch), expected, atol=1e-6)


def test_colours_into_a_grey_model_are_refused() -> None:
    data = Dataset.from_dict({"image": torch.zeros(1, 3, 8, 8).tolist(), "label": [0]})
    task = make(Options())

    with pytest.raises(UnsupportedError, match="have 3 channels, the model reads 1"):
        task.losses(vit().model, task.collate(task.encode(data, None)))


@pytest.mark.parametrize("missing", ["image", "label"])
def test_a_missing_column_is_named(missing: str, data: Dataset) -> None:
    with pytest.raises(DataError, match=f"no column '{missing}'; there is: text"):
        make(Options()).encode(data.remove_columns(missing), None)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([[[[0.0]]], [[[0.0, 1.0]]]], "in one shape"),
        ([[[0.0]], [[1.0]]], r"expected channels x height x width, got shape \[1, 1\]"),
    ],
)
def test_what_is_no_image_is_refused(images: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(Options()).encode(Dataset.from_dict({"image": images, "label": [0, 0]}), None)


def test_predictions_are_the_likeliest_labels(load: Load, data: Dataset) -> None:
    loaded, task, names = load("vit", KIND), make(Options()), ["zero", "one", "two"]
    batch = task.collate(task.encode(data, None))
    expected = [names[index] for index in loaded.model(batch["pixel_values"]).logits.argmax(dim=1).tolist()]
    inputs = [{"image": image} for image in data["image"][:]] * 10

    assert task.predict(loaded.model, None, inputs, names) == expected * 10
    with pytest.raises(DataError, match="input 0 has no 'image'; it has: nothing"):
        task.predict(loaded.model, None, [{}], names)
