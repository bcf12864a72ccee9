"""Full training of the base on public data, once, before the federation: what stands in for a foundation model.

Used where no pretrained model is at hand. The result is cached by what made it, and every process that needs it
computes or reads the same bits; the head trained here is thrown away.
"""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedpeft import __version__, seeds
from fedpeft.config import Experiment, Train
from fedpeft.data.base import Splits
from fedpeft.errors import ModelError, TensorMismatchError
from fedpeft.models.base import Loaded, ModelSource, Wanted
from fedpeft.tasks.base import Task
from fedpeft.tensors import Tensors
from fedpeft.training.loop import train_locally

__all__ = ["pretrained"]

_LOG = logging.getLogger(__name__)


def pretrained(experiment: Experiment, loaded: Loaded, source: ModelSource, task: Task) -> Loaded:
    """Return the loaded model with its body (everything but the task's head) pretrained.

    Raises:
        ModelError: the cached weights are damaged, or not those of this model.
    """
    path = _cache() / f"{_key(experiment)}.safetensors"
    if not path.exists():
        _train(experiment, source, task, path)
    head = task.head(loaded.model)
    fresh = {name: tensor for name, tensor in loaded.model.state_dict().items() if _in(head, name)}
    try:
        loaded.model.load_state_dict({**_read(path), **fresh}, strict=True)
    except (OSError, RuntimeError, SafetensorError, TensorMismatchError) as error:
        raise ModelError(f"{path}: not the weights of this model; delete the file to train them again") from error
    return loaded


def _train(experiment: Experiment, source: ModelSource, task: Task, path: Path) -> None:
    if experiment.pretrain is None or experiment.pretrain_data is None:
        raise ModelError("pretraining needs both tables, [pretrain] and [pretrain_data]")
    seed = seeds.derive(experiment.seed, "pretrain")
    splits: Splits = experiment.pretrain_data.build().load(seed=seed)
    scratch = source.load(Wanted(kind=task.kind, label_names=splits.label_names, seed=seed))
    _LOG.info("pretraining the base model, once, into %s", path)
    model = scratch.model.to(experiment.compute.device).requires_grad_(True)
    settings = experiment.pretrain
    train = Train(local_steps=settings.num_steps, batch_size=settings.batch_size, weight_decay=0.01)
    examples = task.encode(splits.train, scratch.tokenizer)
    parameters = dict(model.named_parameters())
    train_locally(model, parameters, examples, task=task, train=train, rate=settings.learning_rate, seed=seed)
    _save({name: tensor for name, tensor in model.state_dict().items() if not _in(task.head(model), name)}, path)


def _save(body: dict[str, torch.Tensor], path: Path) -> None:
    """Write beside and rename, so that two processes that train at once leave one whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    os.close(descriptor)
    tensors = {name: body[name].cpu().clone() for name in sorted(body)}
    try:
        save_file(tensors, partial, metadata={"digest": Tensors(tensors).digest()})
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Read the cache and check its digest: a flipped bit would otherwise pass for another base model."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        if (file.metadata() or {}).get("digest") != Tensors(tensors).digest():
            raise TensorMismatchError("digest differs")
    return tensors


def _key(experiment: Experiment) -> str:
    table = experiment.table()
    parts = {name: table[name] for name in ("seed", "model", "task", "compute", "pretrain", "pretrain_data")}
    text = json.dumps([parts, __version__, torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fedpeft" / "pretrained"


def _in(modules: tuple[str, ...], name: str) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
