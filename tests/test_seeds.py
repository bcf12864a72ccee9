"""Every purpose has a stream of its own; the global generators are left as they were."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.seeds import derive, generator, isolated

PURPOSE = st.tuples(
    st.integers(0, 2**63 - 1), st.lists(st.text(max_size=6) | st.integers(0, 99), max_size=4).map(tuple)
)


@given(PURPOSE, PURPOSE)
def test_distinct_purposes_have_distinct_seeds(
    one: tuple[int, tuple[str | int, ...]], two: tuple[int, tuple[str | int, ...]]
) -> None:
    a, b = derive(one[0], *one[1]), derive(two[0], *two[1])

    assert (a == b) == (one == two)
    assert 0 <= a < 2**63


def test_purposes_that_look_alike_differ() -> None:
    alike: list[tuple[int, *tuple[str | int, ...]]] = [
        (1, "a", 1),
        (1, "a", "1"),
        (1, "a1"),
        (1, "a", 1, ""),
        (11, "a"),
        (1, 1, "a"),
        (1, "a, 1"),
    ]

    assert len({derive(root, *purpose) for root, *purpose in alike}) == len(alike)


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert derive(7, "sampling", 3) == 662404539216001833


def test_a_generator_repeats_itself_and_shares_nothing() -> None:
    before = torch.get_rng_state()
    draws = [torch.rand(4, generator=generator(7, "noise", client)) for client in (0, 0, 1)]

    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.get_rng_state())


def test_a_block_draws_from_its_own_seed_and_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with isolated(7, "dropout", 1):
            drawn.append(torch.rand(4))
        torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
        torch.set_rng_state(before)

    assert torch.equal(drawn[0], drawn[1])


def test_a_block_that_fails_leaves_no_trace_either() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), isolated(7):
        torch.rand(4) @ torch.rand(5)

    assert torch.equal(before, torch.get_rng_state())
