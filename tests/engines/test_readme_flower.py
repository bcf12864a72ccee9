"""The README's ServerApp, to the letter, with a plain ClientApp of peft: in this process."""

import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from safetensors.torch import load_file

from tests.engines.test_flower_strategy import PlainGrid, _in_a_run

__all__ = ["_in_a_run"]

README = Path(__file__).parents[2] / "README.md"
MODEL = '''
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification


def made():
    """A tiny model with LoRA, the same on every node."""
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = LoraConfig(r=2, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
        return get_peft_model(BertForSequenceClassification(config), lora)
'''
CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from plain_model import made

app = ClientApp()


def measured(message, context):
    model = made()
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    own = torch.arange(4 * 5).reshape(4, 5) % (3 + int(context.node_config["partition-id"]))
    return model, model(input_ids=own, labels=own[:, 0] % 2).loss


@app.train()
def train(message, context):
    model, loss = measured(message, context)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= 0.5 * parameter.grad
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    metrics = MetricRecord({"num-examples": 4, "loss": loss.item()})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    _, loss = measured(message, context)
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 4, "loss": loss.item()})}), reply_to=message)
"""
BEFORE = """
from flwr.serverapp import ServerApp
from plain_model import made
from safetensors.torch import save_file

app = ServerApp()
model = made()
"""
AFTER = """
    save_file(result.arrays.to_torch_state_dict(), context.run_config["result"])
"""


def snippet() -> str:
    """Return the README's code that names FlowerStrategy."""
    (found,) = (
        code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "FlowerStrategy" in code
    )
    return str(found)


def written(folder: Path, result: Path) -> Path:
    """Write the plain Flower app whose ServerApp is the README's."""
    folder.mkdir()
    (folder / "plain_model.py").write_text(MODEL)
    (folder / "plain_client.py").write_text(CLIENT)
    (folder / "plain_server.py").write_text(BEFORE + snippet().rstrip() + AFTER)
    components = {"serverapp": "plain_server:app", "clientapp": "plain_client:app"}
    app = {"publisher": "somebody", "components": components, "config": {"result": str(result)}}
    project = {"name": "plain", "version": "1.0.0", "description": "plain", "license": "MIT", "dependencies": []}
    (folder / "pyproject.toml").write_text(tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}}))
    return folder


def require_trained(result: Path) -> None:
    """The state dict has the names and shapes that peft loads, and B and the head have moved."""
    from peft import get_peft_model_state_dict

    space: dict[str, Any] = {}
    exec(compile(MODEL, "plain_model", "exec"), space)  # noqa: S102 - the text above
    before, after = get_peft_model_state_dict(space["made"]()), load_file(result)
    assert {name: value.shape for name, value in after.items()} == {name: v.shape for name, v in before.items()}
    assert all(value.isfinite().all() for value in after.values())
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert set(moved) >= {name for name in after if "lora_A" not in name}


def test_it_runs_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tmp_path / "result.safetensors"
    monkeypatch.syspath_prepend(written(tmp_path / "app", result))
    client, server = __import__("plain_client").app, __import__("plain_server").app
    assert isinstance(client, ClientApp)
    assert isinstance(server, ServerApp)

    config: Any = {"result": str(result)}
    server(PlainGrid(client, 4), Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))

    require_trained(result)
