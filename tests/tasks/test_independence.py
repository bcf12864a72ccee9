"""No example's loss depends on another's: padded together or each alone, with and without torch.func."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from fedpeft.models.base import Kind, Loaded
from fedpeft.tasks import causal_lm, image_classification, sequence_classification
from fedpeft.tasks.base import Batch, Task

CASES = [
    pytest.param("bert", sequence_classification, {}, id="bert-classification"),
    pytest.param("llama", sequence_classification, {}, id="llama-classification"),
    pytest.param("gpt2", sequence_classification, {}, id="gpt2-classification"),
    pytest.param("llama", causal_lm, {"max_length": 64}, id="llama-answers"),
    pytest.param("gpt2", causal_lm, {"max_length": 64}, id="gpt2-answers"),
    pytest.param("llama", causal_lm, {"text": "plain"}, id="llama-plain"),
    pytest.param("gpt2", causal_lm, {"text": "packed", "max_length": 16, "max_new_tokens": 4}, id="gpt2-packed"),
    pytest.param("vit", image_classification, {}, id="vit"),
]
Load = Callable[[str, Kind], Loaded]


class Losses(nn.Module):
    """The task's losses as one module, for functional_call."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Batch) -> Tensor:
        return self.task.losses(self.model, batch)


@pytest.mark.parametrize(("architecture", "plugin", "options"), CASES)
def test_a_padded_batch_gives_the_losses_of_its_examples_alone(
    architecture: str, plugin: ModuleType, options: dict[str, object], load: Load, data: Dataset
) -> None:
    task: Task = plugin.make(plugin.Options.model_validate(options))
    loaded = load(architecture, task.kind)
    rows = task.encode(data, loaded.tokenizer)

    together = task.losses(loaded.model, task.collate(rows))
    alone = torch.cat([task.losses(loaded.model, task.collate([row])) for row in rows])

    assert together.shape == (len(rows),)
    assert together.dtype == torch.float32
    assert bool((together > 0).all())
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(("architecture", "plugin", "options"), CASES)
def test_another_neighbour_changes_nothing(
    architecture: str, plugin: ModuleType, options: dict[str, object], load: Load, data: Dataset
) -> None:
    task: Task = plugin.make(plugin.Options.model_validate(options))
    loaded = load(architecture, task.kind)
    rows = task.encode(data, loaded.tokenizer)

    first = task.losses(loaded.model, task.collate([rows[0], rows[1]]))
    other = task.losses(loaded.model, task.collate([rows[0], rows[2], rows[1]]))

    assert torch.allclose(first, other[[0, 2]], atol=1e-5)


@pytest.mark.parametrize(("architecture", "plugin", "options"), CASES)
def test_per_sample_gradients_under_vmap_are_those_of_a_loop(
    architecture: str, plugin: ModuleType, options: dict[str, object], load: Load, data: Dataset
) -> None:
    task: Task = plugin.make(plugin.Options.model_validate(options))
    loaded = load(architecture, task.kind)
    batch = task.collate(task.encode(data, loaded.tokenizer))
    module = Losses(task, loaded.model)
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def loss(own: dict[str, Tensor], example: Batch) -> Tensor:
        single = {name: value.unsqueeze(0) for name, value in example.items()}
        return torch.func.functional_call(module, own, (single,)).sum()

    fast = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, batch)

    for index in range(len(batch["labels"])):
        slow = torch.func.grad(loss)(parameters, {name: value[index] for name, value in batch.items()})
        assert all(torch.allclose(fast[name][index], slow[name], atol=1e-5) for name in slow)


def test_the_global_generator_is_not_used(load: Load, data: Dataset) -> None:
    task = sequence_classification.make(sequence_classification.Options())
    loaded = load("bert", task.kind)
    before = torch.random.get_rng_state()

    task.score(loaded.model, task.collate(task.encode(data, loaded.tokenizer)))

    assert torch.equal(before, torch.random.get_rng_state())
