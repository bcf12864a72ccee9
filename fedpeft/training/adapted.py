"""A base model with its adapter and its task: all that is needed to train, evaluate or answer, data apart."""

import os
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from fedpeft import seeds
from fedpeft.adapters.base import Adapter, Attached, head_bounds
from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.errors import UnsupportedError
from fedpeft.models.base import Loaded, Wanted
from fedpeft.models.fingerprint import base_hash
from fedpeft.models.quantized import quantize
from fedpeft.tasks.base import Task
from fedpeft.tensors import Tensors
from fedpeft.training.hardware import recompute_blocks, require_hardware
from fedpeft.training.planning import make_plan
from fedpeft.training.pretrain import pretrained

__all__ = ["Adapted", "adapt", "load_base"]


@final
@dataclass(frozen=True, kw_only=True)
class Adapted:
    """The model side of an experiment."""

    task: Task
    adapter: Adapter
    loaded: Loaded
    plan: Plan
    attached: Attached
    label_names: tuple[str, ...]
    base_hash: str
    """Of the frozen base, the task's own head left out."""
    initial: Tensors
    """The exchanged slots as attached: where round 0 starts."""

    def place(self, tensors: Tensors, residuals: Tensors) -> None:
        """Set the exchanged slots and, where there are residuals, the frozen weights: group -> (d_out, d_in).

        Raises:
            TensorMismatchError: they are not this adapter's.
            UnsupportedError: the method's frozen weights cannot be changed.
        """
        if residuals:
            self.adapter.shift(self.attached, residuals)
        self.attached.write(tensors)


def adapt(experiment: Experiment, label_names: tuple[str, ...], plan: Plan | None = None) -> Adapted:
    """Load the base model and attach the adapter; the server makes the plan, everybody else is given it.

    Raises:
        InputError: a part cannot be built, or the method cannot serve the model.
    """
    require_hardware(experiment.compute)
    _use_threads(experiment.compute.num_threads)
    task: Task = experiment.task.build()
    adapter: Adapter = experiment.adapter.build()
    loaded = _load(experiment, task, label_names)
    head = task.head(loaded.model)
    fingerprint = base_hash(loaded.model, exclude=head)
    plan = plan or make_plan(experiment, adapter, loaded, task, label_names)
    _quantize(experiment, adapter, loaded.model)
    attached = adapter.attach(loaded.model, plan)
    attached = attached.with_bound(head_bounds(attached.model, head))
    attached.model.eval().to(experiment.compute.device)
    if experiment.compute.gradient_checkpointing:
        recompute_blocks(attached.model)
    return Adapted(
        task=task,
        adapter=adapter,
        loaded=loaded,
        plan=plan,
        attached=attached,
        label_names=label_names,
        base_hash=fingerprint,
        initial=attached.read(),
    )


def load_base(experiment: Experiment, task: Task, label_names: tuple[str, ...]) -> Loaded:
    """Load the base model as its source gives it.

    Raises:
        ModelError: it cannot be found, or read safely.
    """
    seed = seeds.derive(experiment.seed, "model")
    loaded: Loaded = experiment.model.build().load(Wanted(kind=task.kind, label_names=label_names, seed=seed))
    return loaded


def _load(experiment: Experiment, task: Task, label_names: tuple[str, ...]) -> Loaded:
    loaded = load_base(experiment, task, label_names)
    return pretrained(experiment, loaded, experiment.model.build(), task) if experiment.pretrain else loaded


def _quantize(experiment: Experiment, adapter: Adapter, model: nn.Module) -> None:
    """Quantise the base that was planned on and hashed in full, if that is asked for."""
    compute = experiment.compute
    if compute.quantization == "none":
        return
    if reason := adapter.beside_quantized():
        raise UnsupportedError(
            f"compute.quantization = {compute.quantization!r} and adapter {experiment.adapter.name!r}: {reason}; use "
            "adapter 'lora' or 'prompt_tuning', or write 'none'"
        )
    computed = torch.bfloat16 if compute.precision == "bfloat16" else torch.float32
    quantize(model, compute.quantization, device=compute.device, computed=computed)


def _use_threads(num_threads: int | str) -> None:
    torch.set_num_threads(os.cpu_count() or 1 if isinstance(num_threads, str) else num_threads)
