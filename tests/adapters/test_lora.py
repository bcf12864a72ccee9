import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fedpeft.adapters import bottleneck
from fedpeft.adapters.base import Attached, head_bounds, pairs
from fedpeft.adapters.lora import Options, make
from fedpeft.adapters.plan import Plan
from fedpeft.errors import UnsupportedError
from tests.adapters.models import BLOCKS, INNER, SAMPLES, WIDTH, build, logits, random_state

# the (d_in + d_out) of all adapted layers of one block, and of layers outside the blocks
LLAMA_BLOCK = 2 * WIDTH * 2 + 2 * (WIDTH + WIDTH // 2) + 3 * (WIDTH + INNER)
SIDES = {
    "bert": BLOCKS * (4 * 2 * WIDTH + 2 * (WIDTH + INNER)) + 2 * WIDTH,
    "llama": BLOCKS * LLAMA_BLOCK,
    "llama_classifier": BLOCKS * LLAMA_BLOCK,
    "gpt2": BLOCKS * ((WIDTH + 3 * WIDTH) + 2 * WIDTH + 2 * (WIDTH + INNER)),
    "vit": BLOCKS * (4 * 2 * WIDTH + 2 * (WIDTH + INNER)),
}


def attach(model: str, **options: Any) -> Attached:
    adapter, base = make(Options(**options)), build(model)
    return adapter.attach(base, adapter.plan(base, seed=3))


@pytest.mark.parametrize("model", SAMPLES)
def test_it_trains_rank_times_the_sides_of_every_layer(model: str) -> None:
    assert attach(model, rank=3).read().num_elements == 3 * SIDES[model]


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6.0 / 4), (True, 6.0 / math.sqrt(4))])
def test_the_scale_is_alpha_over_the_rank_or_its_root(rslora: bool, scale: float) -> None:
    slots = attach("bert", rank=4, alpha=6.0, rslora=rslora).slots

    assert [slot.scale for slot in slots] == pytest.approx([scale] * len(slots))
    assert {slot.role for slot in slots} == {"A", "B"}


def test_a_is_kaiming_uniform_and_b_zero() -> None:
    state = attach("bert", rank=8)

    for pair in pairs(state.slots):
        a, b = state.read()[pair.a.name], state.read()[pair.b.name]
        bound = 1 / math.sqrt(pair.a.shape[1])
        assert 0.8 * bound < a.abs().max() <= bound
        assert not b.any()


def test_two_layers_and_two_seeds_start_apart() -> None:
    adapter, base = make(Options(target_modules=("query", "key"))), build("bert")
    states = [adapter.attach(build("bert"), adapter.plan(base, seed=seed)).read() for seed in (1, 2)]

    first = [tensor for state in states for name, tensor in state.items() if name.endswith("lora_A")]
    assert len({tuple(tensor.flatten().tolist()) for tensor in first}) == len(first) == 8


def test_the_adapted_layer_is_the_formula_by_hand() -> None:
    attached = attach("gpt2", rank=2, alpha=3.0, target_modules=("mlp.c_proj",))
    attached.write(random_state(attached, 1))
    layer = attached.model.get_submodule("transformer.h.0.mlp.c_proj")
    base = build("gpt2").get_submodule("transformer.h.0.mlp.c_proj")
    inputs, state = torch.randn(2, INNER), attached.read()

    a, b = (state[f"transformer.h.0.mlp.c_proj.lora_{role}"] for role in "AB")

    torch.testing.assert_close(layer(inputs), base(inputs) + 1.5 * inputs @ a.T @ b.T)


def test_a_suffix_is_whole_components_and_a_miss_names_what_is_there() -> None:
    assert {slot.group for slot in attach("gpt2", target_modules=("attn.c_proj",)).slots} == {
        f"transformer.h.{block}.attn.c_proj" for block in range(BLOCKS)
    }
    with pytest.raises(UnsupportedError, match=r"ends in 'proj'; there are: attn.c_attn, attn.c_proj, mlp.c_fc, mlp"):
        attach("gpt2", target_modules=("proj",))
    with pytest.raises(UnsupportedError, match="'classifier'"):
        attach("vit", target_modules=("classifier",))
    with pytest.raises(UnsupportedError, match="'lm_head'"):
        attach("llama", target_modules=("lm_head",))


def test_the_rank_pattern_sets_single_ranks_and_the_longest_suffix_counts() -> None:
    attached = attach("bert", rank=2, rank_pattern={"output.dense": 3, "attention.output.dense": 5})
    ranks = {pair.a.group: (pair.a.shape[0], pair.scale) for pair in pairs(attached.slots)}

    assert ranks["bert.encoder.layer.1.attention.output.dense"] == (5, 16 / 5)
    assert ranks["bert.encoder.layer.1.output.dense"] == (3, 16 / 3)
    assert ranks["bert.encoder.layer.1.attention.self.query"] == (2, 8)


def test_a_rank_pattern_without_effect_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="rank_pattern: 'value' matches none"):
        attach("bert", target_modules=("query",), rank_pattern={"value": 2})


def test_ranks_by_pattern_survive_saving(tmp_path: Any) -> None:
    from peft import PeftModel

    adapter, base = make(Options(rank=2, rslora=True, rank_pattern={"mlp.fc1": 5})), build("vit")
    plan = adapter.plan(base, seed=3)
    attached = adapter.attach(base, plan).with_bound(head_bounds(base, ["classifier"]))
    attached.write(random_state(attached, 1))

    adapter.save(attached, plan, tmp_path, base="b", revision=None)

    loaded = PeftModel.from_pretrained(build("vit"), str(tmp_path))
    torch.testing.assert_close(logits(loaded, "vit"), logits(attached.model, "vit"), rtol=0, atol=1e-6)


def test_the_saved_files_are_the_same_bytes_each_time(tmp_path: Any) -> None:
    adapter, base = make(Options(rank=2)), build("bert")
    plan = adapter.plan(base, seed=3)
    attached = adapter.attach(base, plan).with_bound(head_bounds(base, ["classifier"]))

    for name in ("one", "two"):
        adapter.save(attached, plan, tmp_path / name, base="b", revision=None)

    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_dropout_rests_while_the_model_is_in_eval_mode() -> None:
    attached = attach("bert", dropout=0.5)
    attached.write(random_state(attached, 1))

    torch.testing.assert_close(logits(attached.model, "bert"), logits(attached.model, "bert"), rtol=0, atol=0)
    with torch.random.fork_rng():
        attached.model.train()
        assert not torch.equal(logits(attached.model, "bert"), logits(attached.model, "bert"))


def test_a_merged_model_can_be_adapted_again() -> None:
    adapter, attached = make(Options(rank=2)), attach("bert", rank=2)
    attached.write(random_state(attached, 1))

    plain = adapter.merge(attached)

    again = adapter.attach(plain, adapter.plan(plain, seed=4))
    assert again.manifest() == attached.manifest()


def test_twenty_and_more_targets_stay_the_planned_ones() -> None:
    """From 20 targets on, peft shortens their names; the modules must stay those of the plan."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=9,
        hidden_size=4,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=4,
        max_position_embeddings=4,
    )
    adapter, base = (
        make(Options(rank=1, target_modules=("output.dense", "query"))),
        BertForSequenceClassification(config),
    )

    attached = adapter.attach(base, adapter.plan(base, seed=1))

    assert len(pairs(attached.slots)) == 36


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"rank_pattern": {"query": 0}}])
def test_options_have_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)


def test_the_order_of_slots_comes_from_the_model_not_from_the_plan() -> None:
    adapter, base = make(Options(target_modules=("query", "key", "value"))), build("bert")
    plan = adapter.plan(base, seed=1)
    ranks = dict(reversed(plan.values["ranks"].items()))

    turned = Plan(adapter="lora", values={**plan.values, "ranks": ranks})

    assert adapter.attach(base, plan).manifest() == adapter.attach(build("bert"), turned).manifest()


def test_the_scale_changes_inside_the_block_alone() -> None:
    adapter, base = make(Options(rank=3, alpha=5.0)), build("bert")
    attached = adapter.attach(base, adapter.plan(base, seed=3))
    attached.write(random_state(attached, 1))
    state = random_state(attached, 1)
    tripled = state.replace({name: 3 * tensor for name, tensor in state.items() if name.endswith("lora_B")})
    before = logits(base, "bert")

    with adapter.scaled(attached, 3.0):
        within = logits(base, "bert")
    with pytest.raises(RuntimeError, match="stop"), adapter.scaled(attached, 1 / 3):
        raise RuntimeError("stop")

    assert torch.equal(logits(base, "bert"), before)
    attached.write(tripled)
    torch.testing.assert_close(within, logits(base, "bert"), rtol=1e-5, atol=1e-6)
    assert (within - before).abs().max() > 0.01


def test_a_method_without_a_scale_says_so_when_another_is_asked_for() -> None:
    adapter, base = bottleneck.make(bottleneck.Options()), build("bert")
    attached = adapter.attach(base, adapter.plan(base, seed=3))

    with adapter.scaled(attached, 1.0):
        pass
    with pytest.raises(UnsupportedError, match="no scale that can be changed"), adapter.scaled(attached, 2.0):
        pass
