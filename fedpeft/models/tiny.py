"""Small models with random weights built from a config, for tests and runs without any download."""

from dataclasses import dataclass
from typing import Literal, Self, final

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from fedpeft.config.base import Frozen
from fedpeft.errors import ModelError
from fedpeft.models._architectures import KINDS, build_config
from fedpeft.models._kinds import FAMILIES, set_labels
from fedpeft.models._masks import open_masks
from fedpeft.models._tokenizer import byte_tokenizer
from fedpeft.models.base import Loaded, ModelSource, Wanted
from fedpeft.seeds import isolated

__all__ = ["Options", "Tiny", "make"]

_TEXT = ("max_positions",)
_IMAGE = ("image_size", "patch_size", "num_channels")


@final
class Options(Frozen):
    """The shape of the model."""

    architecture: Literal["bert", "llama", "gpt2", "vit"] = "bert"
    """bert classifies texts, llama and gpt2 also generate, vit classifies images."""
    hidden_size: int = Field(default=32, ge=2)
    """Width; a multiple of num_heads."""
    num_layers: int = Field(default=2, ge=1)
    """Blocks."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads."""
    intermediate_size: int = Field(default=64, ge=1)
    """Width of the feed-forward layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In training, everywhere the architecture has it."""
    max_positions: int = Field(default=128, ge=8)
    """Longest text in tokens, which are bytes; texts only."""
    image_size: int = Field(default=8, ge=1)
    """Height and width in pixels; vit only."""
    patch_size: int = Field(default=4, ge=1)
    """Height and width of a patch; divides image_size; vit only."""
    num_channels: int = Field(default=1, ge=1)
    """Channels of an image; vit only."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size = {self.hidden_size} is not a multiple of num_heads = {self.num_heads}")
        if self.architecture == "llama" and self.hidden_size // self.num_heads % 2:
            raise ValueError("llama rotates pairs: hidden_size / num_heads must be even")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size = {self.image_size} is not a multiple of patch_size = {self.patch_size}")
        return self._without_idle_fields()

    def _without_idle_fields(self) -> Self:
        fields = type(self).model_fields
        for name in _TEXT if self.architecture == "vit" else _IMAGE:
            if self.model_dump()[name] != fields[name].default:
                raise ValueError(f"{name} has no effect on {self.architecture}; remove it")
        return self


@final
@dataclass(frozen=True)
class Tiny(ModelSource):
    """A model nobody trained."""

    options: Options

    def load(self, wanted: Wanted) -> Loaded:
        """Draw the weights from wanted.seed.

        Raises:
            ModelError: the architecture does not serve the wanted kind.
        """
        architecture = self.options.architecture
        if wanted.kind not in KINDS[architecture]:
            raise ModelError(f"tiny {architecture} serves {', '.join(KINDS[architecture])}, not {wanted.kind}")
        config = build_config(architecture, self.options.model_dump())
        set_labels(config, wanted)
        with isolated(wanted.seed, "model"):
            model = FAMILIES[wanted.kind].from_config(config, attn_implementation="eager").eval()
        open_masks(model)
        return Loaded(model=model, tokenizer=self._tokenizer(), reference=f"tiny-{architecture}")

    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        if self.options.architecture == "vit":
            return None
        return byte_tokenizer(max_length=self.options.max_positions, pairs=self.options.architecture == "bert")


def make(options: Options) -> ModelSource:
    """Build the source."""
    return Tiny(options)
