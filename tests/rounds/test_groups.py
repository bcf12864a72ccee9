"""Groups follow from the clients and the size alone, and wait until they are whole."""

from types import SimpleNamespace
from typing import Any

from fedpeft.rounds.groups import Gathering, grouped


def labelled(label: str, name: str) -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(group_id=label), name=name)


def test_clients_are_grouped_in_order_and_the_last_group_says_that_it_is_smaller() -> None:
    assert list(grouped([5, 6, 7], 2, 4)) == [(5, "4/0/2"), (6, "4/0/2"), (7, "4/1/1")]
    assert list(grouped([5, 6], 1, 4)) == [(5, "4"), (6, "4")]
    assert list(grouped([], 2, 4)) == []


def test_a_group_is_given_out_once_it_is_whole_and_in_order() -> None:
    gathering = Gathering()
    first, second, third, alone = (
        labelled(label, name) for label, name in (("4/0/2", "a"), ("4/1/2", "b"), ("4/0/2", "c"), ("4", "d"))
    )
    assert gathering.add(first) == []
    assert gathering.add(second) == []
    assert gathering.add(alone) == [alone]
    assert gathering.add(third) == [first, third]
