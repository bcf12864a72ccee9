import warnings

import pytest
from datasets import Dataset
from pydantic import ValidationError

from fedpeft import plugins
from fedpeft.config.base import Frozen
from fedpeft.data.base import Partition
from fedpeft.data.shares import Shares, deal
from fedpeft.errors import DataError

LABELS = ("a", "b", "c", "d", "e")


def examples(count: int = 200) -> Dataset:
    """Sorted by label, as files often are."""
    return Dataset.from_dict(
        {
            "text": [f"text {n}" for n in range(count)],
            "label": [n * 5 // count for n in range(count)],
            "client": [f"user {n % 7}" for n in range(count)],
        }
    )


def build(name: str, **options: object) -> Partition:
    module = plugins.load("partition", name)
    checked: Frozen = module.Options.model_validate(options)
    partition: Partition = module.make(checked)
    return partition


def shares(name: str, *, train: Dataset | None = None, seed: int = 0, **options: object) -> Shares:
    return deal(train or examples(), build(name, **options), seed=seed)


def counts(dealt: Shares) -> list[dict[str, int]]:
    return [line["labels"] for line in dealt.summary(LABELS)]


def test_the_folder_holds_seven_described_partitions() -> None:
    described = plugins.describe("partition")
    assert sorted(described) == ["dirichlet", "iid", "natural", "own", "pathological", "quantity_skew", "resampled"]
    assert all(len(line) > 20 for line in described.values())


@pytest.mark.parametrize("name", ["dirichlet", "iid", "pathological", "quantity_skew"])
def test_the_seed_decides_the_deal(name: str) -> None:
    def held(seed: int) -> list[list[int]]:
        dealt = shares(name, seed=seed, num_clients=4)
        return [dealt.rows(client).tolist() for client in range(4)]

    assert held(1) == held(1)
    assert held(1) != held(2)


def test_iid_gives_equal_shares_of_every_label_though_the_data_are_sorted() -> None:
    dealt = shares("iid", num_clients=3)
    assert sorted(dealt.sizes()) == [66, 67, 67]
    assert all(5 <= count <= 25 for client in counts(dealt) for count in client.values())


def test_dirichlet_is_skewed_for_small_alpha_and_even_for_large() -> None:
    even, skewed = (shares("dirichlet", num_clients=4, alpha=alpha) for alpha in (1000.0, 0.1))
    assert all(7 <= count <= 13 for client in counts(even) for count in client.values())
    assert max(count for client in counts(skewed) for count in client.values()) >= 30
    assert sum(even.sizes()) == sum(skewed.sizes()) == 200


def test_dirichlet_keeps_the_least_number_of_examples() -> None:
    assert min(shares("dirichlet", num_clients=8, alpha=0.5, min_examples=10).sizes()) >= 10


def test_dirichlet_draws_again_without_a_warning() -> None:
    partitioner = build("dirichlet", num_clients=8, alpha=0.5, min_examples=10).partitioner(examples(), seed=3)
    partitioner.dataset = examples()
    with pytest.warns(UserWarning, match="min_partition_size"):
        _ = partitioner.num_partitions
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(5):
            shares("dirichlet", num_clients=8, alpha=0.5, min_examples=10, seed=seed)


def test_dirichlet_that_cannot_be_drawn_says_what_to_change() -> None:
    with pytest.raises(DataError, match=r"alpha = 0.01, num_clients = 50: in no draw .* min_examples = 2 of 200"):
        shares("dirichlet", num_clients=50, alpha=0.01, min_examples=2)


def test_pathological_clients_have_exactly_their_number_of_labels() -> None:
    dealt = shares("pathological", num_clients=10, classes_per_client=2)
    assert all(sum(count > 0 for count in client.values()) == 2 for client in counts(dealt))
    assert dealt.num_undealt == 0
    assert sum(dealt.sizes()) == 200


def test_pathological_counts_the_examples_of_labels_nobody_has() -> None:
    dealt = shares("pathological", num_clients=3, classes_per_client=1)
    assert dealt.num_undealt == 80
    assert [sum(client.values()) for client in counts(dealt)] == [40, 40, 40]


def test_pathological_refuses_more_labels_than_there_are() -> None:
    with pytest.raises(DataError, match=r"classes_per_client = 6: the data has 5 labels; expected .* <= 5"):
        shares("pathological", num_clients=3, classes_per_client=6)


def test_pathological_refuses_a_label_with_fewer_examples_than_clients() -> None:
    train = Dataset.from_dict({"label": [0] * 30 + [1]})
    with pytest.raises(DataError, match=r"num_clients = 5, classes_per_client = 2: more clients share a label"):
        shares("pathological", train=train, num_clients=5, classes_per_client=2)


def test_natural_gives_each_client_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    dealt = shares("natural")
    assert [sorted(set(dealt.examples(n)["client"])) for n in range(7)] == [[f"user {n}"] for n in range(7)]
    assert dealt.sizes() == [29, 29, 29, 29, 28, 28, 28]
    assert capfd.readouterr() == ("", "")


def test_natural_refuses_an_example_of_nobody() -> None:
    train = Dataset.from_dict({"label": [0, 1, 1], "client": ["a", None, "b"]})
    with pytest.raises(DataError, match="partition 'natural': 1 of 3 examples have no 'client'"):
        shares("natural", train=train)


@pytest.mark.parametrize(
    ("law", "sizes"),
    [("linear", [20, 40, 60, 80]), ("square", [6, 26, 60, 108]), ("exponential", [6, 17, 47, 130])],
)
def test_quantity_skew_follows_its_law(law: str, sizes: list[int]) -> None:
    # For example square: 200 / (1 + 4 + 9 + 16) = 6.67 a unit, rounded down, and the rest to the last.
    assert shares("quantity_skew", num_clients=4, law=law).sizes() == sizes


@pytest.mark.parametrize(("law", "num_clients"), [("linear", 100), ("square", 60), ("exponential", 10)])
def test_quantity_skew_refuses_a_client_without_examples(law: str, num_clients: int) -> None:
    with pytest.raises(DataError, match=rf"law = '{law}', num_clients = {num_clients}: the smallest client .* lower"):
        shares("quantity_skew", num_clients=num_clients, law=law)


def test_an_exponential_that_overflows_is_refused_without_a_warning() -> None:
    with pytest.raises(DataError, match="law = 'exponential', num_clients = 800"):
        shares("quantity_skew", train=examples(1000), num_clients=800, law="exponential")


@pytest.mark.parametrize("name", ["dirichlet", "iid", "pathological", "quantity_skew"])
def test_more_clients_than_examples_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"num_clients = 201: .* there are 200 .* expected num_clients <= 200"):
        shares(name, num_clients=201)


@pytest.mark.parametrize(("name", "column"), [("dirichlet", "label"), ("pathological", "label"), ("natural", "client")])
def test_a_missing_column_is_named_with_those_that_are_there(name: str, column: str) -> None:
    with pytest.raises(DataError, match=rf"partition '{name}' needs the column '{column}'; the data has text: choose"):
        shares(name, train=Dataset.from_dict({"text": ["x", "y"]}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iid", {"num_clients": 0}),
        ("dirichlet", {"alpha": 0.0}),
        ("dirichlet", {"min_examples": 0}),
        ("pathological", {"classes_per_client": 0}),
        ("natural", {"num_clients": 3}),
        ("quantity_skew", {"law": "cubic"}),
    ],
)
def test_options_out_of_bounds_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        build(name, **options)
