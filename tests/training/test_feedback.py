"""Error feedback against a slow oracle in float64 over several rounds, and what it promises in sum."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft import plugins
from fedpeft.adapters.base import Algebra, Slot
from fedpeft.codecs.base import Codec, Common
from fedpeft.codecs.chain import chained
from fedpeft.codecs.scaling import largest_alpha
from fedpeft.config import Experiment
from fedpeft.errors import ConfigError, TensorMismatchError, UnsupportedError
from fedpeft.strategies.base import Directive, State
from fedpeft.tensors import Tensors
from fedpeft.training.feedback import joined_memory, owed, own, send, settled
from fedpeft.training.workbench import assemble
from tests.conftest import needed, tiny

FREE = settings(max_examples=25, deadline=None)
Arrays = dict[str, np.ndarray[Any, Any]]


def codec_of(name: str, **options: Any) -> Codec:
    module = plugins.load("codec", name)
    found = module.make(module.Options(**options))
    assert isinstance(found, Codec)
    return found


def slots_of(rank: int, d_in: int, d_out: int) -> tuple[Slot, ...]:
    """Return a pair and a head."""
    shapes: dict[str, Any] = {"A": (rank, d_in), "B": (d_out, rank)}
    pair = [Slot(name=f"m.{r}", shape=s, group="m", role=r, algebra=Algebra.BILINEAR) for r, s in shapes.items()]
    return (*pair, Slot(name="h", shape=(3,), group="h", role="head", algebra=Algebra.LINEAR))


def drawn(slots: tuple[Slot, ...], seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return Tensors((slot.name, torch.from_numpy(rng.normal(size=slot.shape)).float()) for slot in slots)


def kept_largest(x: Arrays, density: float) -> Arrays:
    """Keep the largest entries of each tensor, which are a class each here."""
    found = {}
    for name, value in x.items():
        order = np.argsort(-np.abs(value.ravel()), kind="stable")
        flat = np.zeros(value.size)
        chosen = order[: max(1, math.floor(density * value.size + 0.5))]
        flat[chosen] = value.ravel()[chosen]
        found[name] = flat.reshape(value.shape)
    return found


def cut(name: str, value: Any, rank: int) -> Any:
    return value[:rank] if name == "m.A" else value[:, :rank] if name == "m.B" else value


@FREE
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    turns=st.lists(st.tuples(st.sets(st.sampled_from(["m.A", "m.B", "h"]), min_size=1), st.integers(1, 5)), max_size=8),
    density=st.sampled_from([0.1, 0.4, 1.0]),
    seed=st.integers(0, 99),
)
def test_it_is_the_oracle_over_rounds_that_send_some_tensors_and_ranks(
    size: tuple[int, int, int], turns: list[tuple[set[str], int]], density: float, seed: int
) -> None:
    slots, errors = slots_of(*size), Tensors()
    common, codec = Common(roles={slot.name: slot.role for slot in slots}), codec_of("top_k", density=density)
    memory: Arrays = {slot.name: np.zeros(slot.shape) for slot in slots}
    arrived, wanted = ({slot.name: np.zeros(slot.shape) for slot in slots} for _ in range(2))
    for number, (names, most) in enumerate(turns):
        rank = min(most, size[0])
        change = drawn(slots, 1000 * seed + number).select(names)
        change = Tensors((name, cut(name, value, rank).contiguous()) for name, value in change.items())
        body, errors = send(codec, common, change, errors, slots, Directive(rank=rank))
        got = codec.decode(body, change.manifest(), common)

        x = {name: value.double().numpy() + cut(name, memory[name], rank) for name, value in change.items()}
        sent = kept_largest(x, density)
        for name, value in x.items():
            cut(name, memory[name], rank)[...] = value - sent[name]
            cut(name, arrived[name], rank)[...] += got[name].double().numpy()
            cut(name, wanted[name], rank)[...] += change[name].double().numpy()
            np.testing.assert_allclose(got[name].numpy(), sent[name], rtol=1e-5, atol=1e-5)
    for name, value in errors.items():
        np.testing.assert_allclose(value.numpy(), memory[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(arrived[name], wanted[name] - value.double().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", plugins.names("codec"))
def test_what_arrives_sums_to_what_was_sent_less_what_is_owed(name: str) -> None:
    slots, codec, errors = slots_of(4, 30, 20), codec_of(name), Tensors()
    roles = {slot.name: slot.role for slot in slots}
    total, norms = drawn(slots, 0).to(torch.float64).zeros(), []
    for number in range(200):
        common = Common(roles=roles, seed=number)
        body, errors = send(codec, common, drawn(slots, 7), errors, slots, Directive())
        total = total + codec.decode(body, errors.manifest(), common).to(torch.float64)
        norms.append(errors.norm())
    gap = drawn(slots, 7).to(torch.float64) * 200.0 - total - errors.to(torch.float64)

    assert gap.norm() < 1e-4 * total.norm()
    assert max(norms[100:]) < 1.5 * max(norms[:100]) + 1e-9, "what is owed does not grow"
    if name == "none":
        assert norms == [0.0] * 200


def test_what_is_owed_lies_beside_the_strategys_own_memory() -> None:
    mine, errors = Tensors({"m.A": torch.ones(2)}), Tensors({"m.A": torch.zeros(3)})
    kept = joined_memory(mine, errors)

    assert (own(kept), owed(kept)) == (mine, errors)
    assert (own(Tensors()), owed(Tensors())) == (Tensors(), Tensors())


def test_what_is_owed_of_another_shape_or_not_finite_is_refused() -> None:
    slots = slots_of(2, 3, 4)
    codec, change = codec_of("bfloat16"), drawn(slots, 1)
    with pytest.raises(TensorMismatchError):
        send(codec, Common(), change, drawn(slots_of(2, 4, 4), 1), slots, Directive())
    with pytest.raises(TensorMismatchError, match="what the codec leaves out"):
        send(codec, Common(), change * math.inf, Tensors(), slots, Directive())


@FREE
@given(seed=st.integers(0, 99), name=st.sampled_from(["bfloat16", "int8", "int4", "none"]))
def test_the_server_goes_on_from_what_clients_decode_and_loses_nothing(seed: int, name: str) -> None:
    slots, codec = slots_of(2, 7, 5), codec_of(name)
    names, common = ["m.A", "h"], Common()
    first = State(adapter=drawn(slots, seed))
    state, total = settled(codec, common, names, first, first), first.adapter.to(torch.float64)
    for number in range(5):
        sent = state.exact.select(names)
        there = codec.decode(codec.encode(sent, common), sent.manifest(), common)
        assert state.adapter.select(names) == there
        assert state.adapter.without(names) == state.exact.without(names)
        change = drawn(slots, 100 + number) * 1e-3
        total = total + change.to(torch.float64)
        state = settled(codec, common, names, state, State(adapter=state.adapter + change))
    assert (state.exact.to(torch.float64) - total).norm() < 1e-5 * total.norm()
    if name == "none":
        assert state.exact == state.adapter


@pytest.mark.parametrize(("density", "limit"), [(0.05, 4.68), (0.1, 4.13), (0.2, 3.51), (0.3, 3.11), (0.5, 2.54)])
def test_scales_beyond_the_specifications_table_are_refused(density: float, limit: float) -> None:
    assert largest_alpha(density) == pytest.approx(limit, abs=0.006)
    options: dict[str, Any] = {"density": density, "densities": {}, "scale": "std"}
    assert codec_of("compeft", **options, alpha=limit - 0.05).grows() is None
    assert "lower alpha" in str(codec_of("compeft", **options, alpha=limit + 0.05).grows())
    assert "lower alpha" in str(codec_of("compeft", density=density, scale="std", alpha=1.7).grows()), "a whole head"


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([("compeft", {"scale": "dp_norm", "norm": 1.0})], "dp_norm"),
        ([("compeft", {"densities": {"A": 0.0}})], "density 0"),
        ([("top_k", {"density": 0.0})], "density 0"),
        ([("random_k", {"rescale": True}), ("int8", {})], "rescale"),
        ([("top_k", {}), ("compeft", {"scale": "std", "alpha": 6.0})], "alpha = 6.0"),
    ],
)
def test_codecs_whose_errors_grow_say_so(stages: list[tuple[str, Any]], words: str) -> None:
    assert words in str(chained([codec_of(name, **options) for name, options in stages]).grows())


def experiment(name: str, **changes: Any) -> Experiment:
    return tiny(None, **needed(name, **{"codec": {"name": "compeft"}, **changes}))


@pytest.mark.parametrize("name", ["flora", "fedex_lora", "flexlora", "florist", "median", "lora_fair"])
def test_strategies_that_change_coordinates_or_leave_updates_out_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"feedback\.up = true and strategy '{name}' do not go together"):
        assemble(experiment(name, feedback={"up": True}))


def test_a_growing_codec_is_refused_by_setting() -> None:
    codec = {"name": "compeft", "scale": "std", "alpha": 6.0}
    with pytest.raises(UnsupportedError, match=r"feedback\.up = true lets the errors of codec compeft grow: alpha = 6"):
        assemble(experiment("fedavg", codec=codec, feedback={"up": True}))


def test_unequal_ranks_are_refused_downwards_alone() -> None:
    down = {"codec_down": {"name": "int8"}, "feedback": {"down": True}}
    with pytest.raises(UnsupportedError, match=r"feedback\.down = true and strategy 'dylora'"):
        assemble(experiment("dylora", **down))


@pytest.mark.parametrize(("side", "key"), [("up", "codec"), ("down", "codec_down")])
def test_feedback_of_a_lossless_codec_is_a_setting_without_effect(side: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"feedback\.{side} = true: has no effect with {key} 'none'"):
        tiny(None, feedback={side: True})
