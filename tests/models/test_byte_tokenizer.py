"""The tokenizer made of no files."""

import pytest

from fedpeft.models._tokenizer import EOS_ID, NUM_TOKENS, PAD_ID, byte_tokenizer

TEXTS = ["plain", "", "  two  spaces\n\ttabs ", "Grüße, 世界 🙂", "\x00\x7f"]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_any_text_round_trips(text: str, pairs: bool) -> None:
    tokenizer = byte_tokenizer(max_length=64, pairs=pairs)

    ids = tokenizer(text)["input_ids"]

    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) == len(text.encode()) + (2 if pairs else 0)
    assert all(0 <= token < NUM_TOKENS for token in ids)


def test_a_pair_is_framed_as_bert_reads_it() -> None:
    tokenizer = byte_tokenizer(max_length=64, pairs=True)

    encoded = tokenizer("ab", "c")

    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]


def test_a_decoder_has_an_end_and_padding_and_no_token_types() -> None:
    tokenizer = byte_tokenizer(max_length=64, pairs=False)

    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD_ID, EOS_ID)
    assert set(tokenizer("ab", "c")) == {"input_ids", "attention_mask"}


def test_a_byte_is_one_token_of_its_own() -> None:
    tokenizer = byte_tokenizer(max_length=512, pairs=False)

    ids = tokenizer("".join(map(chr, range(128))))["input_ids"]

    assert len(set(ids)) == 128
