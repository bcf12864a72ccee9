"""Clients that are made when they are drawn."""

import json
from collections import Counter

import pytest
from datasets import Dataset

from fedpeft.data.base import VirtualPartition
from fedpeft.data.partitions import resampled
from fedpeft.data.virtual import VirtualShares, made_when_drawn
from fedpeft.errors import DataError, UnsupportedError
from fedpeft.training.dealing import deal_out
from tests.conftest import tiny

NAMES = ("x", "y", "z")


def labelled(num_examples: int = 300) -> Dataset:
    texts = [f"t{n}" for n in range(num_examples)]
    return Dataset.from_dict({"text": texts, "label": [n % 3 for n in range(num_examples)]})


def partition(**options: object) -> VirtualPartition:
    return resampled.make(resampled.Options.model_validate(options))


def shares(train: Dataset | None = None, *, seed: int = 0, **options: object) -> VirtualShares:
    return made_when_drawn(partition(**options), train or labelled(), seed=seed)


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_a_clients_examples_follow_from_its_number_and_the_seed(alpha: float | None) -> None:
    few, many = (shares(num_clients=number, num_examples=9, alpha=alpha) for number in (50, 10**6))
    other = shares(num_clients=50, num_examples=9, alpha=alpha, seed=1)

    held = [few.examples(client)["text"][:] for client in range(50)]

    assert held == [many.examples(client)["text"][:] for client in range(50)]
    assert len({tuple(each) for each in held}) == 50
    assert held != [other.examples(client)["text"][:] for client in range(50)]
    assert len(many.examples(10**6 - 1)) == 9


def test_without_alpha_no_example_of_a_client_repeats_and_each_is_as_likely() -> None:
    dealt = shares(labelled(20), num_clients=4000, num_examples=5)
    held = [dealt.drawn(client) for client in range(4000)]
    assert all(len(set(rows)) == 5 for rows in held)
    counts = Counter(row for rows in held for row in rows)
    assert sorted(counts) == list(range(20))
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 43.8, "chi-square of 19, p = 0.001"


def test_alpha_skews_the_labels_of_each_client_and_not_of_all() -> None:
    skewed, even = (shares(num_clients=400, num_examples=30, alpha=alpha) for alpha in (0.1, 1000.0))
    mixes = [line["labels"] for line in skewed.summary(NAMES)]
    largest = [max(mix.values()) / 30 for mix in mixes]
    assert sum(largest) / 400 > 0.8
    assert all(sum(mix[name] for mix in mixes) / 12_000 == pytest.approx(1 / 3, abs=0.06) for name in NAMES)
    assert all(max(line["labels"].values()) < 25 for line in even.summary(NAMES))


def test_examples_repeat_only_where_a_label_has_no_more() -> None:
    dealt = shares(labelled(9), num_clients=60, num_examples=8, alpha=0.05)
    for client in range(60):
        by_label = Counter(row % 3 for row in dealt.drawn(client))
        different = Counter(row % 3 for row in set(dealt.drawn(client)))
        assert sum(by_label.values()) == 8
        assert all(different[label] == count for label, count in by_label.items() if count <= 3)


def test_the_summary_lists_a_thousand_and_counts_the_rest() -> None:
    summary = shares(num_clients=10**6, num_examples=4).summary(NAMES)
    assert len(summary) == 1001
    assert all(sum(line["labels"].values()) == line["num_examples"] == 4 for line in summary[:1000])
    rest = {"client": "1000 to 999999", "num_clients": 999_000, "num_examples": 3_996_000, "labels": {}}
    assert summary[1000] == rest
    assert json.loads(json.dumps(summary)) == summary
    assert len(shares(num_clients=1000, num_examples=4).summary(NAMES)) == 1000


@pytest.mark.parametrize("client", [-1, 50])
def test_a_client_that_is_not_there_is_refused(client: int) -> None:
    with pytest.raises(DataError, match=f"client {client}: expected 0 <= client < 50"):
        shares(num_clients=50).examples(client)


def test_more_examples_than_there_are_and_a_missing_label_are_refused() -> None:
    with pytest.raises(DataError, match=r"num_examples = 301: there are 300 to train on"):
        shares(num_clients=5, num_examples=301)
    with pytest.raises(DataError, match="partition 'resampled' needs the column 'label'"):
        shares(labelled().remove_columns("label"), num_clients=5, alpha=1.0)
    with pytest.raises(DataError, match="a virtual partition deals nothing"):
        partition(num_clients=5).partitioner(labelled(), seed=0)


def test_what_would_not_be_true_of_shared_examples_is_refused() -> None:
    virtual = {"name": "resampled", "num_clients": 50}
    private = {"unit": "example", "sample_rate": 0.1, "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}
    with pytest.raises(UnsupportedError, match=r"privacy.unit = 'example': clients share examples, .* 'client'"):
        deal_out(tiny(partition=virtual, privacy=private, strategy={"name": "fedavg", "weighting": "uniform"}))
    with pytest.raises(UnsupportedError, match=r"evaluate.on_clients: what one client holds out others train on"):
        deal_out(tiny(partition=virtual, evaluate={"on_clients": True}))
