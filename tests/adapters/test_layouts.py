"""Each naming scheme is checked against the architecture it is for, as transformers builds it today."""

from typing import Any

import pytest
import transformers

from fedpeft.adapters._layouts import layout
from fedpeft.adapters._targets import at_places, features

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS: list[tuple[Any, Any, dict[str, Any]]] = [
    (transformers.RobertaModel, transformers.RobertaConfig, {**SMALL, **TEXT}),
    (transformers.ElectraModel, transformers.ElectraConfig, {**SMALL, **TEXT, "embedding_size": 16}),
    (transformers.DebertaV2Model, transformers.DebertaV2Config, {**SMALL, **TEXT}),
    (
        transformers.DistilBertModel,
        transformers.DistilBertConfig,
        {**TEXT, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    (
        transformers.ModernBertModel,
        transformers.ModernBertConfig,
        {**SMALL, **TEXT, "cls_token_id": 1, "sep_token_id": 2},
    ),
    (transformers.GPTNeoXModel, transformers.GPTNeoXConfig, {**SMALL, **TEXT}),
    (transformers.BloomModel, transformers.BloomConfig, {**TEXT, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    (
        transformers.OPTModel,
        transformers.OPTConfig,
        {
            **TEXT,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
        },
    ),
    (transformers.PhiModel, transformers.PhiConfig, {**SMALL, **TEXT}),
    (transformers.Qwen2Model, transformers.Qwen2Config, {**SMALL, **TEXT, "num_key_value_heads": 1}),
    (transformers.DeiTModel, transformers.DeiTConfig, {**SMALL, "image_size": 8, "patch_size": 4}),
]


@pytest.mark.parametrize(("model", "config", "sizes"), MODELS, ids=lambda part: getattr(part, "__name__", ""))
def test_the_layout_names_each_sublayers_last_layer_once_a_block(
    model: Any, config: Any, sizes: dict[str, Any]
) -> None:
    built = model(config(**sizes))
    found = layout(built)

    for place in (found.attention_output, found.feed_forward_output):
        paths = at_places(built, [place])
        assert len(paths) == 2
        assert {features(built.get_submodule(path))[1] for path in paths} == {16}
    assert len(at_places(built, found.keys_values)) == 2 * len(found.keys_values)
    inner = features(built.get_submodule(at_places(built, [found.feed_forward_output])[0]))[0]
    feeding = at_places(built, found.feed_forward_input)
    assert len(feeding) == 2 * len(found.feed_forward_input)
    assert {features(built.get_submodule(path))[1] for path in feeding} <= {inner}
