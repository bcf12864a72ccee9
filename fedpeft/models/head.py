"""Which modules of a model are its head, read off the model itself."""

from torch import nn
from transformers import PreTrainedModel

__all__ = ["head_modules"]


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that hold parameters and stand beside the encoder, in the model's order.

    Transformers keeps every encoder under one child and what a task adds beside it: ``classifier`` next to ``bert``
    and ``vit``, ``score`` next to ``model`` and ``transformer``. A model that wraps such a one gives longer names.
    """
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            prefix = f"{name}." if name else ""
            return tuple(f"{prefix}{child}" for child in _beside_the_encoder(module))
    return ()


def _beside_the_encoder(module: PreTrainedModel) -> list[str]:
    return [
        name
        for name, child in module.named_children()
        if child is not module.base_model and next(child.parameters(), None) is not None
    ]
