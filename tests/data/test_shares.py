import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy
import pytest
from datasets import Array3D, ClassLabel, Dataset, Features
from flwr_datasets.partitioner import Partitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.data.base import Partition
from fedpeft.data.partitions import dirichlet, iid, natural, pathological, quantity_skew
from fedpeft.data.shares import Shares, deal
from fedpeft.errors import DataError
from fedpeft.report.watch import clients_of


class Fixed(Partitioner):
    """A third party's partitioner that gives out the places it is told."""

    def __init__(self, places: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._places = places

    def load_partition(self, partition_id: int) -> Dataset:
        return self.dataset.select(self._places[partition_id])

    @property
    def num_partitions(self) -> int:
        return len(self._places)


@final
@dataclass(frozen=True)
class FixedPartition(Partition):
    places: tuple[tuple[int, ...], ...]

    def partitioner(self, train: Dataset, *, seed: int) -> Partitioner:
        return Fixed(self.places)


def labelled(labels: Sequence[int]) -> Dataset:
    return Dataset.from_dict({"text": [f"t{n}" for n in range(len(labels))], "label": list(labels)})


def test_the_summary_counts_by_hand_and_is_json() -> None:
    shares = Shares.of(labelled([0, 1, 1, 2, 0]), [numpy.array([0, 1, 2]), numpy.array([4])])
    summary = shares.summary(("x", "y", "z"))
    assert summary == [
        {"client": 0, "num_examples": 3, "labels": {"x": 1, "y": 2, "z": 0}},
        {"client": 1, "num_examples": 1, "labels": {"x": 1, "y": 0, "z": 0}},
    ]
    assert json.loads(json.dumps(summary)) == summary
    assert (shares.num_clients, shares.sizes(), shares.num_undealt) == (2, [3, 1], 1)
    assert shares.examples(0)["text"][:] == ["t0", "t1", "t2"]


def test_without_labels_the_summary_counts_examples() -> None:
    shares = deal(Dataset.from_dict({"text": list("abc")}), iid.make(iid.Options(num_clients=2)), seed=0)
    assert shares.summary(()) == [
        {"client": 0, "num_examples": 2, "labels": {}},
        {"client": 1, "num_examples": 1, "labels": {}},
    ]


def test_of_many_clients_a_summary_lists_a_thousand_and_adds_up_the_rest() -> None:
    shares = Shares.of(labelled([0, 1, 1] * 400), [numpy.array([n]) for n in range(1199)])
    summary = shares.summary(("x", "y"))
    assert [line["client"] for line in summary] == [*range(1000), "1000 to 1198"]
    assert summary[999] == {"client": 999, "num_examples": 1, "labels": {"x": 1, "y": 0}}
    assert summary[1000] == {
        "client": "1000 to 1198",
        "num_clients": 199,
        "num_examples": 199,
        "labels": {"x": 66, "y": 133},
    }
    assert clients_of(summary) == 1199


PARTITIONS = (
    iid.make(iid.Options(num_clients=3)),
    dirichlet.make(dirichlet.Options(num_clients=3, alpha=5.0)),
    pathological.make(pathological.Options(num_clients=4, classes_per_client=1)),
    quantity_skew.make(quantity_skew.Options(num_clients=3)),
    natural.make(natural.Options()),
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PARTITIONS), st.lists(st.integers(0, 3), min_size=8, max_size=40), st.integers(0, 2**62))
def test_shares_are_disjoint_and_cover_what_is_dealt(partition: Partition, labels: list[int], seed: int) -> None:
    train = labelled([0, 0, 0, 0, 1, 2, 3, *labels])
    train = train.add_column("client", [f"c{n % 3}" for n in range(len(train))])
    shares = deal(train, partition, seed=seed)
    dealt = shares.order.tolist()
    assert sorted(dealt) == list(range(len(train)))
    assert min(shares.sizes()) >= 1
    assert [shares.examples(client)["text"][:] for client in range(shares.num_clients)] == [
        [f"t{row}" for row in shares.rows(client)] for client in range(shares.num_clients)
    ]


def test_images_and_class_labels_go_through_a_deal() -> None:
    features = Features({"image": Array3D((1, 2, 2), "float32"), "label": ClassLabel(names=["x", "y"])})
    images = numpy.arange(40, dtype=numpy.float32).reshape(10, 1, 2, 2)
    train = Dataset.from_dict({"image": images, "label": [0, 1] * 5}, features=features).select(range(9, -1, -1))
    shares = deal(train, dirichlet.make(dirichlet.Options(num_clients=2, alpha=50.0)), seed=1)
    firsts = [int(image[0][0][0]) for client in range(2) for image in shares.examples(client)["image"]]
    assert sorted(firsts) == list(range(0, 40, 4))


def test_a_source_that_is_only_images_can_be_dealt() -> None:
    features = Features({"image": Array3D((1, 1, 1), "float32")})
    train = Dataset.from_dict({"image": numpy.zeros((4, 1, 1, 1), numpy.float32)}, features=features)
    assert deal(train, iid.make(iid.Options(num_clients=2)), seed=0).sizes() == [2, 2]


@pytest.mark.parametrize("client", [-1, 2])
def test_a_client_that_is_not_there_is_refused(client: int) -> None:
    shares = deal(labelled([0] * 4), iid.make(iid.Options(num_clients=2)), seed=0)
    with pytest.raises(DataError, match=f"client {client}: expected 0 <= client < 2"):
        shares.examples(client)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (((0, 1), (1, 2)), "gives 1 examples to more than one client"),
        (((0, 1), ()), "leaves 1 of 2 clients without an example"),
        ((), "deals to no client; expected at least one"),
    ],
)
def test_a_deal_that_would_spoil_an_experiment_is_refused(places: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        deal(labelled([0, 1, 2]), FixedPartition(places), seed=0)


def test_what_a_third_partys_partitioner_refuses_becomes_a_data_error() -> None:
    class Refusing(Fixed):
        def load_partition(self, partition_id: int) -> Dataset:
            raise ValueError("not today")

    @dataclass(frozen=True)
    class RefusingPartition(Partition):
        def partitioner(self, train: Dataset, *, seed: int) -> Partitioner:
            return Refusing([[0]])

    with pytest.raises(DataError, match=r"3 examples cannot be dealt by .*RefusingPartition.*: not today"):
        deal(labelled([0, 1, 2]), RefusingPartition(), seed=0)


def test_a_thousand_clients_are_dealt_in_seconds() -> None:
    began = time.perf_counter()
    shares = deal(labelled([0, 1] * 5000), iid.make(iid.Options(num_clients=1000)), seed=0)
    assert set(shares.sizes()) == {10}
    assert time.perf_counter() - began < 20  # about 1 s; room for a busy machine


def test_the_random_state_of_others_is_left_alone() -> None:
    before = numpy.random.get_state()[1].tolist()
    deal(labelled([0, 1] * 10), dirichlet.make(dirichlet.Options(num_clients=2)), seed=0)
    assert numpy.random.get_state()[1].tolist() == before
