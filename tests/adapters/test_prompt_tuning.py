"""Prompt tuning against the plain model, which is given [P; E], mask, types and positions by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5Model

from fedpeft.adapters._prompts import Prompts, body_of
from fedpeft.adapters.base import Attached
from fedpeft.adapters.prompt_tuning import Options, make
from fedpeft.errors import UnsupportedError
from fedpeft.privacy.per_sample import by_hooks, by_loop
from tests.adapters.models import SAMPLES, VOCABULARY, WIDTH, build, logits, losses, random_state

TEXTS = ["bert", "gpt2", "llama", "llama_classifier"]
COUNT, LENGTHS = 4, (6, 2, 4)


def attached_to(model: str, seed: int = 3, **options: Any) -> Attached:
    adapter, base = make(Options(**{"num_tokens": COUNT, **options})), build(model)
    return adapter.attach(base, adapter.plan(base, seed=seed))


def trained(model: str) -> tuple[Attached, Tensor]:
    """Return an attached model away from its start, and its vectors."""
    attached = attached_to(model)
    attached.write(random_state(attached, 1))
    return attached, attached.bound[0].parameter.detach()


def ragged(*, left: bool = False) -> dict[str, Tensor]:
    """Rows of unequal lengths, padded on the right (or left) with token 0."""
    tokens = torch.randint(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(4))
    places = torch.arange(max(LENGTHS)).flip(0) if left else torch.arange(max(LENGTHS))
    mask = (places < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


def by_hand(model: str, vectors: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """One row after the other, without padding and without hooks: the body on [P; E], the head on what follows P."""
    plain: Any = build(model)
    body, rows = plain.base_model, []
    for tokens, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        embedded = body.get_input_embeddings()(tokens[mask == 1])
        states = body(inputs_embeds=torch.cat([vectors, embedded])[None]).last_hidden_state[:, len(vectors) :]
        if model == "bert":
            rows.append(plain.classifier(torch.tanh(body.pooler.dense(states[:, 0])))[0])
        else:
            rows.append(plain.score(states[0, -1]) if model == "llama_classifier" else plain.lm_head(states)[0])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) if model in ("gpt2", "llama") else torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("model", TEXTS)
def test_a_padded_batch_gives_what_each_row_gives_alone_and_by_hand(model: str) -> None:
    attached, vectors = trained(model)
    batch = ragged()
    expected = by_hand(model, vectors, batch)

    found = attached.model(**batch).logits

    if model in ("gpt2", "llama"):
        assert found.shape == (len(LENGTHS), max(LENGTHS), VOCABULARY)
        found = found * batch["attention_mask"][:, :, None]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for row, length in enumerate(LENGTHS):
        alone = attached.model(input_ids=batch["input_ids"][row : row + 1, :length]).logits[0]
        torch.testing.assert_close(alone, expected[row, :length] if alone.ndim == 2 else expected[row])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_virtual_tokens_stand_between_class_token_and_patches_without_positions(attention: str) -> None:
    attached, vectors = trained("vit")
    adapted: Any = attached.model
    adapted.set_attn_implementation(attention)
    plain: Any = build("vit")
    states = plain.vit.embeddings(SAMPLES["vit"].inputs["pixel_values"])
    states = torch.cat([states[:, :1], vectors.expand(len(states), -1, -1), states[:, 1:]], dim=1)
    for layer in plain.vit.layers:
        states = layer(states)
    expected = plain.classifier(plain.vit.layernorm(states)[:, 0])

    torch.testing.assert_close(logits(attached.model, "vit"), expected, rtol=1e-5, atol=1e-5)
    body = adapted.base_model(**SAMPLES["vit"].inputs).last_hidden_state
    torch.testing.assert_close(
        body, plain.vit.layernorm(torch.cat([states[:, :1], states[:, 1 + COUNT :]], 1)), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_types_of_tokens_follow_the_text_and_virtual_ones_are_of_the_first() -> None:
    attached, vectors = trained("bert")
    plain: Any = build("bert")
    ids, types = SAMPLES["bert"].inputs["input_ids"], torch.tensor([[0, 0, 1, 1, 1]] * 3)
    both = torch.cat([vectors.expand(3, -1, -1), plain.bert.get_input_embeddings()(ids)], dim=1)
    long = torch.tensor([[0] * COUNT + [0, 0, 1, 1, 1]] * 3)
    states = plain.bert(inputs_embeds=both, token_type_ids=long).last_hidden_state
    expected = plain.classifier(torch.tanh(plain.bert.pooler.dense(states[:, COUNT])))

    torch.testing.assert_close(attached.model(input_ids=ids, token_type_ids=types).logits, expected)
    assert not torch.allclose(attached.model(input_ids=ids).logits, expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_labels_are_those_of_the_real_tokens(model: str) -> None:
    attached, vectors = trained(model)
    ids = SAMPLES[model].inputs["input_ids"]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    expected = cross_entropy(by_hand(model, vectors, batch)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    torch.testing.assert_close(attached.model(**batch, labels=ids).loss, expected)


@torch.no_grad()
@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_from_the_left_padded_equals_the_most_likely_token_by_hand(model: str, use_cache: bool) -> None:
    attached, vectors = trained(model)
    batch, steps = ragged(left=True), 4
    written: Any = attached.model
    found = written.generate(
        **batch, max_new_tokens=steps, do_sample=False, use_cache=use_cache, pad_token_id=0, eos_token_id=None
    )[:, -steps:]

    for row, length in enumerate(LENGTHS):
        tokens = batch["input_ids"][row, -length:]
        for step in range(steps):
            alone = {"input_ids": tokens[None], "attention_mask": torch.ones_like(tokens)[None]}
            tokens = torch.cat([tokens, by_hand(model, vectors, alone)[0, -1:].argmax(-1)])
            assert tokens[-1] == found[row, step]


def test_starts_are_drawn_within_the_papers_bounds_or_from_the_vocabulary() -> None:
    text, image = attached_to("llama").read(), attached_to("vit").read()
    (drawn,), (patches,) = text.values(), image.values()
    bound = (6 / (3 * 4**2 + WIDTH)) ** 0.5
    assert 0.3 < float(drawn.abs().max()) <= 0.5
    assert 0.6 * bound < float(patches.abs().max()) <= bound
    assert drawn.shape == patches.shape == (COUNT, WIDTH)
    assert text.digest() != attached_to("llama", seed=4).read().digest()

    base: Any = build("llama")
    (sampled,) = attached_to("llama", init="vocabulary").read().values()
    table = base.get_input_embeddings().weight
    assert all(any(torch.equal(row, entry) for entry in table) for row in sampled)
    assert not torch.equal(sampled, next(iter(attached_to("llama", init="vocabulary", seed=4).read().values())))


def test_a_deep_copy_reads_its_own_vectors() -> None:
    attached, _ = trained("bert")
    before = logits(attached.model, "bert")
    copied = copy.deepcopy(attached.model)
    with torch.no_grad():
        copied.get_parameter(attached.slots[0].name).zero_()

    assert torch.equal(logits(attached.model, "bert"), before)
    assert not torch.allclose(logits(copied, "bert"), before, atol=1e-3)


@pytest.mark.parametrize("model", [*TEXTS, "vit"])
def test_hooks_see_the_vectors_once_for_each_row_and_not_as_a_batch_of_one(model: str) -> None:
    attached, _ = trained(model)
    batch = dict(SAMPLES[model].inputs)
    (found,), (expected,) = (
        by_hooks(attached.model, batch, losses).values(),
        by_loop(attached.model, batch, losses).values(),
    )

    assert make(Options()).gradients().by == "hooks"
    assert len(found) > 1
    assert not torch.allclose(expected[0], expected[1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(UnsupportedError, match=r"num_tokens = 16: expected < 16"):
        attached_to("bert", num_tokens=16)
    with pytest.raises(UnsupportedError, match=r"12 virtual tokens and 5 .* at most 16 .*max_length to 4"):
        logits(attached_to("bert", num_tokens=12).model, "bert")
    with pytest.raises(UnsupportedError, match=r"images have none; use 'random'"):
        attached_to("vit", init="vocabulary")
    assert attached_to("vit", num_tokens=40).read().num_elements == 40 * WIDTH


def test_models_of_another_kind_and_a_second_time_are_refused() -> None:
    for other in (nn.Linear(2, 2), T5Model(T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=9))):
        with pytest.raises(UnsupportedError, match=r"has neither; use adapter 'lora'"):
            make(Options()).plan(other, seed=1)
    with pytest.raises(UnsupportedError, match="put in once"):
        Prompts(torch.zeros(2, WIDTH)).install(body_of(attached_to("bert").model)[1])


def test_calls_that_would_be_misread_are_refused() -> None:
    text: Any = attached_to("bert").model
    image = attached_to("vit").model
    ids = SAMPLES["bert"].inputs["input_ids"]
    with pytest.raises(UnsupportedError, match=r"expected a mask of \(batch, length\), got \(3, 1, 5, 5\)"):
        text(input_ids=ids, attention_mask=torch.ones(3, 1, 5, 5))
    with pytest.raises(UnsupportedError, match="leave return_dict at its default"):
        text.base_model(input_ids=ids, return_dict=False)
    with pytest.raises(UnsupportedError, match="images come without an attention mask"):
        image(**SAMPLES["vit"].inputs, attention_mask=torch.ones(3, 5))


def test_merging_and_peft_are_refused(tmp_path: Any) -> None:
    adapter, base = make(Options()), build("llama")
    plan = adapter.plan(base, seed=1)
    attached = adapter.attach(base, plan)
    with pytest.raises(UnsupportedError, match="cannot be merged"):
        adapter.merge(attached)
    with pytest.raises(UnsupportedError, match="use fedpeft's own format"):
        adapter.save(attached, plan, tmp_path / "x", base="b", revision=None)
    assert not list(tmp_path.iterdir())
