"""Host a method of HF peft: inject it as planned, merge it back, write its file format.

What is written is what the slots hold, in the names that ``peft.PeftModel.from_pretrained`` reads; peft's own state
dict, which for many methods is not the trained set, is never asked.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from fedpeft.adapters._targets import planned
from fedpeft.adapters.base import Attached, freeze
from fedpeft.errors import UnsupportedError
from fedpeft.seeds import isolated

__all__ = ["NAME", "inject", "layers", "merge", "require_float", "save", "scaled"]

NAME = "default"
"""The one adapter name used inside peft's modules."""
_PREFIX = "base_model.model."
_SEQUENCE_HEADS = ("classifier", "score")
"""peft itself adds these to modules_to_save for task type SEQ_CLS, and needs them in the file."""


def inject(tuner: Any, model: nn.Module, config: PeftConfig, paths: Collection[str]) -> Any:
    """Freeze the model, let peft replace exactly these modules in place, and return the tuner.

    Raises:
        UnsupportedError: the model lacks a planned module, or peft would adapt others than planned.
    """
    planned(model, paths)
    with isolated(0, "peft"):
        host = tuner(freeze(model), config, NAME)
    model.train(model.training)  # peft's new modules start in training mode, whatever the model's is
    if different := sorted(set(layers(model)) ^ set(paths)):
        raise UnsupportedError(
            f"peft and the plan differ on {different[0]!r}: one module's path is the end of another's"
        )
    return host


def layers(model: nn.Module) -> dict[str, Any]:
    """Return path -> peft layer, in module order, which server and clients share."""
    return {path: module for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@contextmanager
def scaled(model: nn.Module, factor: float) -> Iterator[None]:
    """Multiply peft's scaling of every layer inside the block; after it, each is to the bit what it was."""
    if factor == 1.0:
        yield
        return
    before = [(layer, layer.scaling[NAME]) for layer in layers(model).values()]
    try:
        for layer, scale in before:
            layer.scaling[NAME] = scale * factor
        yield
    finally:
        for layer, scale in before:
            layer.scaling[NAME] = scale


def require_float(model: nn.Module, *, doing: str) -> None:
    """Refuse what changes frozen weights where these are quantised.

    Raises:
        UnsupportedError: they are; says why not.
    """
    for path, layer in layers(model).items():
        if not layer.get_base_layer().weight.is_floating_point():
            raise UnsupportedError(
                f"{path!r} is quantised (compute.quantization), and {doing}; use the adapter beside the base in full "
                "precision: `fedpeft export RUN FOLDER` writes it for peft"
            )


def merge(attached: Attached) -> nn.Module:
    """Fold the adapter in through peft, checked for NaN, and return the model without a trace of peft.

    Raises:
        UnsupportedError: a frozen weight is quantised.
        ValueError: peft found a non-finite merged weight.
    """
    require_float(attached.model, doing="merging would round the update away with it")
    merged: nn.Module = attached.handle.merge_and_unload(safe_merge=True)
    return merged


def save(
    attached: Attached,
    config: PeftConfig,
    folder: Path,
    *,
    suffix: str,
    base: str,
    revision: str | None,
    factors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write adapter_model.safetensors and adapter_config.json; ``suffix`` follows each slot's name in the file.

    ``factors``, where given, are written in place of the slots: name -> what the file holds under it.
    """
    task_type = _task_type(attached.model)
    heads = _heads(attached, task_type)
    config.task_type, config.modules_to_save = task_type, heads or None
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    config.target_modules = sorted(config.target_modules)  # peft holds a set, whose order changes by the process
    live = {bound.slot.name: bound.parameter for bound in attached.bound if bound.slot.role != "head"}
    own = {f"{_PREFIX}{name}{suffix}": value for name, value in (factors or live).items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in {**own, **_saved(attached, heads)}.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _heads(attached: Attached, task_type: str | None) -> list[str]:
    """Return the modules to save whole: those with head slots and those peft adds, none inside another."""
    groups = {slot.group for slot in attached.slots if slot.role == "head"}
    if task_type == "SEQ_CLS":
        groups |= {name for name, _ in attached.model.named_children() if name in _SEQUENCE_HEADS}
    return sorted(group for group in groups if not any(group.startswith(f"{other}.") for other in groups))


def _saved(attached: Attached, heads: Iterable[str]) -> dict[str, Tensor]:
    """Return the file's entries of whole modules. peft matches them by the bare end of a name, so that ``classifier``
    also claims ``pre_classifier``: all it will look for is written."""
    ends = tuple(heads)
    named = {path: module for path, module in attached.model.named_modules() if ends and path.endswith(ends)}
    return {
        f"{_PREFIX}{path}.{name}": value
        for path, module in named.items()
        for name, value in module.state_dict().items()
    }


def _task_type(model: nn.Module) -> str | None:
    kind = type(model).__name__
    if kind.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "CAUSAL_LM" if kind.endswith(("ForCausalLM", "LMHeadModel")) else None
