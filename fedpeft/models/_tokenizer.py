"""A byte-level tokenizer made of no files: one token a byte, so that any text in any language round-trips."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["EOS_ID", "NUM_TOKENS", "PAD_ID", "byte_tokenizer"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]")
NUM_TOKENS = len(_SPECIAL) + 256
"""Rows an embedding needs."""
PAD_ID = _SPECIAL.index("[PAD]")
EOS_ID = _SPECIAL.index("[EOS]")


def byte_tokenizer(*, max_length: int, pairs: bool) -> PreTrainedTokenizerBase:
    """Build the tokenizer.

    With pairs, texts are framed as BERT's: ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]`` with token types 0 and 1;
    without, a text is its bytes alone, as a decoder reads it.
    """
    tokenizer = _bytes()
    if pairs:
        tokenizer.post_processor = _frame()
    names = ["input_ids", "token_type_ids", "attention_mask"] if pairs else ["input_ids", "attention_mask"]
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if pairs else {"eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=names,
        clean_up_tokenization_spaces=False,
        pad_token="[PAD]",  # noqa: S106 - a token's spelling, not a secret
        unk_token="[UNK]",  # noqa: S106
        **marks,
    )


def _bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _frame() -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, _SPECIAL.index(mark)) for mark in ("[CLS]", "[SEP]")],
    )
