"""The same work in pfl-research (Granqvist et al. 2024, arXiv 2404.06430), one process, as its tutorials write it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks._work import BATCH, RATE, batches, load_base, with_lora

__all__ = ["simulate"]


@final
class _Module(nn.Module):
    """The model with the two functions that pfl asks for."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self._names = model, names

    def loss(self, *columns: Tensor) -> Tensor:
        found: Tensor = self.model(**dict(zip(self._names, columns, strict=True))).loss
        return found

    @torch.no_grad()
    def metrics(self, *columns: Tensor) -> dict[str, Any]:
        return {"loss": Weighted(float(self.loss(*columns)), 1)}


@final
class _Stamps(TrainingProcessCallback):
    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        """Say that a round has ended."""
        self._ended()
        return False, Metrics()


def simulate(folder: Path, rounds: int, ended: Callable[[], None], clients: int) -> None:
    """Train all clients in each round."""
    everyone = [_whole(batches(folder, client)) for client in range(clients)]
    names = list(everyone[0])
    data = {client: list(own.values()) for client, own in enumerate(everyone)}
    sampler = get_user_sampler("minimize_reuse", list(data))
    users = FederatedDataset(lambda client: Dataset(data[client], user_id=str(client)), sampler)
    module = _Module(with_lora(folder, load_base(folder)), names)
    trained = [each for each in module.parameters() if each.requires_grad]
    model = PyTorchModel(module, torch.optim.AdamW, torch.optim.SGD(trained, lr=1.0))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=clients,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=users, val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH, local_num_steps=None
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=BATCH),
        callbacks=[_Stamps(ended)],
    )


def _whole(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Put a client's batches end to end, all as long as the longest."""
    longest = max(part["input_ids"].shape[1] for part in parts)
    return {
        name: torch.cat([_padded(part[name], longest, -100 if name == "labels" else 0) for part in parts])
        for name in parts[0]
    }


def _padded(value: Tensor, length: int, fill: int) -> Tensor:
    return value if value.dim() == 1 else nn.functional.pad(value, (0, length - value.shape[1]), value=fill)
