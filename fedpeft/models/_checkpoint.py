"""A transformers checkpoint, local or on a hub, as a base model in float32; no code and no pickle of its own is run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file, logging

from fedpeft.config.base import Frozen
from fedpeft.errors import ModelError
from fedpeft.models._kinds import FAMILIES, set_labels
from fedpeft.models._masks import open_masks
from fedpeft.models._weights import read_weights
from fedpeft.models.base import Kind, Wanted
from fedpeft.models.head import head_modules
from fedpeft.seeds import isolated

__all__ = ["ReadOptions", "quiet", "read_checkpoint"]


class ReadOptions(Frozen):
    """What any checkpoint may be read with."""

    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Of every dropout layer, in place of what the checkpoint was pretrained with; 0 also saves the time to draw it."""


def read_checkpoint(
    path: str, wanted: Wanted, *, options: ReadOptions, revision: str | None = None, name: str | None = None
) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """Read model and tokenizer (None for images) of a local folder or a hub id; name is what the model calls itself.

    Raises:
        ModelError: not found, not safe to read, not of the wanted kind, no dropout to set, or weights missing.
    """
    try:
        _refuse_adapter(path, revision)
        model = _model(path, wanted, revision, options)
        model.name_or_path = model.config.name_or_path = name or path
        return model, _tokenizer(path, wanted, model, revision)
    except ModelError:
        raise
    except Exception as error:  # transformers and its readers raise an open set of types
        reason = str(error).strip().partition("\n")[0][:300]
        raise ModelError(f"{path}: cannot be read for {wanted.kind}: {reason}") from error


def _model(path: str, wanted: Wanted, revision: str | None, options: ReadOptions) -> Any:
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    set_labels(config, wanted)
    if options.dropout is not None:
        _set_dropout(config, options.dropout, path)
    with torch.device("meta"):
        family = type(FAMILIES[wanted.kind].from_config(config, trust_remote_code=False))
    weights = read_weights(path, revision)
    with isolated(wanted.seed, "model"), quiet():
        model, report = _fill(family, config, weights)
    _require_complete(path, model, report, wanted.kind)
    model.config.use_cache = False
    open_masks(model)
    return model.eval()


def _set_dropout(config: Any, rate: float, path: str) -> None:
    """Set each rate that the configuration has: transformers' models name them *_dropout(_prob), *_pdrop or dropout."""
    names = [
        name
        for name, value in config.to_dict().items()
        if ("dropout" in name or name.endswith("_pdrop")) and type(value) in (int, float)
    ]
    if not names:
        raise ModelError(f"model.dropout = {rate}: {path} is a {config.model_type}, which has no dropout; leave it out")
    config.update(dict.fromkeys(names, rate))


def _fill(family: Any, config: Any, weights: dict[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """Build the model around the weights; a head of another size is drawn anew."""
    model, report = family.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return model, report


def _require_complete(path: str, model: Any, report: dict[str, Any], kind: Kind) -> None:
    """A frozen weight drawn at random would never be noticed and never be trained."""
    fresh = () if kind == "causal_lm" else head_modules(model)
    absent = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if outside := sorted(name for name in absent if not name.startswith(tuple(f"{module}." for module in fresh))):
        raise ModelError(
            f"{path}: {len(outside)} weights of a {kind} model are missing or of another shape, "
            f"the first is {outside[0]}; choose a checkpoint that has them"
        )
    if kind == "causal_lm" and not _is_causal(model):
        raise ModelError(f"{path}: its predictions look at later tokens: not a causal language model")


@torch.inference_mode()
def _is_causal(model: Any) -> bool:
    """Change the last of two tokens and look whether the first position's logits move."""
    logits = model.eval()(input_ids=torch.tensor([[0, 0], [0, 1]]), use_cache=False).logits
    return bool(torch.allclose(logits[0, 0], logits[1, 0], rtol=1e-3, atol=1e-4))


def _tokenizer(path: str, wanted: Wanted, model: Any, revision: str | None) -> PreTrainedTokenizerBase | None:
    if wanted.kind == "image_classification":
        return None
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{path}: its tokenizer has neither a padding nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    # Decoders with a classification head find the last token of a row by this id.
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _refuse_adapter(path: str, revision: str | None) -> None:
    """Transformers would follow an adapter to whatever base it names."""
    if find_adapter_config_file(path, revision=revision):
        raise ModelError(f"{path}: holds an adapter (adapter_config.json), not a base model; name its base instead")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' reports of new heads and its progress bars, and restore both settings."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
