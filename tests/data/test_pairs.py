"""Pairs of passages: which are kept, who exchanges with whom, and that no passage stands in two pairs."""

import pytest

from fedpeft.data.pairs import distinct, joined, passages
from fedpeft.errors import DataError


def parts(count: int) -> list[tuple[str, str]]:
    return [(f"first {index}", f"rest {index}") for index in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fit the model. Then return it. Or not.", ("Fit the model.", "Then return it. Or not.")),
        ("Is it fitted? Return that.", ("Is it fitted?", "Return that.")),
        ("Version 2.0 of it. Return that.", ("Version 2.0 of it.", "Return that.")),
        ("Fit the model, e.g. a tree. Return it.", ("Fit the model, e.g. a tree.", "Return it.")),
        ("Fit the model.", None),
        ("Fit. Return the model.", None),
        ("Fit the model. Done.", None),
    ],
)
def test_a_text_is_cut_after_its_first_sentence(text: str, expected: tuple[str, str] | None) -> None:
    assert passages(text, min_words=2) == expected


def test_a_text_that_repeats_a_passage_of_another_is_left_out() -> None:
    texts = [
        "One is here. Two is there.",
        "ONE is here. Three is there.",
        "Four is here. two is there.",
        "Five is. Six is.",
    ]

    assert distinct([*texts, "too short. At all."], min_words=2) == [0, 3, 4]
    assert distinct([*texts, "too short. At all."], min_words=3) == [0]


def test_half_of_each_group_exchange_their_continuations_among_themselves() -> None:
    groups = ["a"] * 6 + ["b"] * 4

    made = joined(parts(10), groups, seed=1)

    assert [first for first, _, _ in made] == [f"first {index}" for index in range(10)]
    assert sorted(second for _, second, _ in made) == sorted(f"rest {index}" for index in range(10))
    for index, (_, second, label) in enumerate(made):
        origin = int(second.split()[1])
        assert (origin == index) == (label == 1)
        assert groups[origin] == groups[index]
    assert [sum(label == 0 for _, _, label in made[part]) for part in (slice(6), slice(6, 10))] == [3, 2]


def test_the_seed_alone_decides_who_exchanges() -> None:
    groups = ["a"] * 40

    assert joined(parts(40), groups, seed=1) == joined(parts(40), groups, seed=1)
    assert joined(parts(40), groups, seed=1) != joined(parts(40), groups, seed=2)


def test_a_group_too_small_to_exchange_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"'b' has 3 texts of two passages; expected at least 4"):
        joined(parts(7), ["a"] * 4 + ["b"] * 3, seed=1)
