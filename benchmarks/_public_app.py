"""Flower apps as its public examples write them: one builds its model in the handler, the other keeps it."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from benchmarks._work import BATCH, RATE, STEPS, Batch, batches, load_base, with_lora

__all__ = ["client_app", "server_app"]

Made = Callable[[], None]


def _model(folder: str) -> PeftModel:
    return with_lora(Path(folder), load_base(Path(folder)))


@lru_cache(maxsize=1)
def _kept(folder: str) -> PeftModel:
    return _model(folder)


@lru_cache(maxsize=256)
def _data(folder: str, client: int) -> list[Batch]:
    return batches(Path(folder), client)


def client_app(folder: str, *, cached: bool) -> ClientApp:
    """Return the app; ``cached`` keeps the model of a process."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        model = _kept(folder) if cached else _model(folder)
        set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
        loss = _fit(model, _data(folder, int(context.node_config["partition-id"])))
        arrays = ArrayRecord(get_peft_model_state_dict(model))
        metrics = MetricRecord({"train_loss": loss, "num-examples": STEPS * BATCH})
        return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def _fit(model: PeftModel, data: Iterable[Batch]) -> float:
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=RATE)
    model.train()
    total = 0.0
    for batch in data:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / STEPS


class Stamped(FedAvg):
    """Plain averaging that says when a round has ended."""

    ended: Made

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, then say so; a client that failed did no work, and nothing is compared with that."""
        came = list(replies)
        if failed := [str(message.error) for message in came if message.has_error()]:
            raise RuntimeError(f"round {server_round}: {len(failed)} of {len(came)} clients failed: {failed[0]}")
        found = super().aggregate_train(server_round, came)
        self.ended()
        return found


def server_app(folder: str, *, clients: int, rounds: int, ended: Made) -> ServerApp:
    """Return the server app; ``ended`` is called as each round ends."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Stamped(
            fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
        )
        strategy.ended = ended
        initial = ArrayRecord(get_peft_model_state_dict(_model(folder)))
        strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds)

    return app
