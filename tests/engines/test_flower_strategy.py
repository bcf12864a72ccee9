"""Our strategies inside a plain ServerApp with plain ClientApps, against NumPy."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from fedpeft.engines.flower_strategy import TRAIN_KEY, FlowerStrategy
from fedpeft.engines.inline import InlineGrid
from fedpeft.errors import ConfigError, RunError, UnsupportedError

PREFIX = "base_model.model.layers.0.q_proj"
A, B, HEAD = f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight", "base_model.model.score.weight"
Given = dict[str, Tensor]
Reply = Callable[[int, Given, ConfigRecord], RecordDict]


@pytest.fixture(autouse=True)
def _in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's runtime says who a process is, and new messages ask for it."""
    for name, value in {"_run_id": 1, "_node_id": 0, "_task_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


class PlainGrid(Grid):
    """Flower numbers messages when they are sent; this grid does so, and runs them in this process."""

    def __init__(self, app: ClientApp, num_clients: int) -> None:
        self._inner, self._ids = InlineGrid(app, num_clients=num_clients), itertools.count()
        self.sent: list[Message] = []

    def set_run(self, run: Any) -> None:
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        return self._inner.run

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        return self._inner.create_message(*arguments, **options)

    def get_node_ids(self) -> Iterable[int]:
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._inner.push_messages(self._numbered(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies come back last first."""
        return list(self._inner.send_and_receive(self._numbered(messages)))[::-1]

    def _numbered(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"plain-{next(self._ids)}"
            self.sent.append(message)
            yield message


def start() -> Given:
    random = torch.Generator().manual_seed(0)
    return {A: torch.randn(2, 5, generator=random), B: torch.randn(4, 2, generator=random), HEAD: torch.zeros(3, 4)}


def moved(client: int, given: Given, names: Iterable[str]) -> Given:
    """Return what a client holds after training: its own fixed step in the named tensors."""
    random = torch.Generator().manual_seed(client)
    steps = {name: torch.randn(value.shape, generator=random) for name, value in given.items()}
    return {name: value + 0.3 * steps[name] if name in set(names) else value for name, value in given.items()}


def honest(client: int, given: Given, config: ConfigRecord) -> RecordDict:
    names = config.get(TRAIN_KEY, list(given))
    assert isinstance(names, list)
    return packed(moved(client, given, [str(name) for name in names]), client + 1)


def packed(tensors: Given, count: Any) -> RecordDict:
    metrics = MetricRecord({"num-examples": count, "loss": float(count)})
    return RecordDict({"arrays": ArrayRecord(tensors), "metrics": metrics})


def federation(strategy: FlowerStrategy, reply: Reply = honest, *, num_clients: int = 3, num_rounds: int = 1) -> Any:
    """Run a plain ServerApp over plain ClientApps; return the result and the grid."""
    client_app, server_app, results = ClientApp(), ServerApp(), []

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        given = message.content.array_records["arrays"].to_torch_state_dict()
        client = int(context.node_config["partition-id"])
        return Message(reply(client, given, message.content.config_records["config"]), reply_to=message)

    @client_app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(strategy.start(grid=grid, initial_arrays=ArrayRecord(start()), num_rounds=num_rounds))

    grid = PlainGrid(client_app, num_clients)
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    (result,) = results
    assert isinstance(result, Result)
    return result, grid


def arrays(result: Result) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.double().numpy() for name, tensor in result.arrays.to_torch_state_dict().items()}


def held(given: Given) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.double().numpy() for name, tensor in given.items()}


def test_lora_fair_in_a_plain_server_app_is_the_ridge_of_numpy() -> None:
    result, grid = federation(FlowerStrategy("lora_fair", alpha=4, options={"regularization": 0.1}))

    clients, weights = [held(moved(client, start(), start())) for client in range(3)], np.array([1, 2, 3]) / 6
    mean = {name: sum(w * mine[name] for w, mine in zip(weights, clients, strict=True)) for name in start()}
    wanted = sum(w * mine[B] @ mine[A] for w, mine in zip(weights, clients, strict=True))
    gram = mean[A] @ mean[A].T
    system = gram + 0.1 * np.trace(gram) / 2 * np.eye(2)
    mended = mean[B] + (wanted - mean[B] @ mean[A]) @ mean[A].T @ np.linalg.inv(system)
    found = arrays(result)
    assert list(found) == list(start())
    for name, expected in ((A, mean[A]), (B, mended), (HEAD, mean[HEAD])):
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-6)
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx((1 + 4 + 9) / 6)
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(0.5)
    assert {message.content.config_records["config"]["server-round"] for message in grid.sent} == {1}


def test_fedavg_is_flowers_own() -> None:
    ours, _ = federation(FlowerStrategy("fedavg", alpha=4), num_rounds=2)
    flowers, _ = federation(FedAvg(), num_rounds=2)  # type: ignore[arg-type]

    for name, value in arrays(flowers).items():
        np.testing.assert_allclose(arrays(ours)[name], value, rtol=1e-6, atol=1e-6)


def test_what_a_strategy_remembers_lives_through_the_rounds() -> None:
    """fedavgm: the same step twice, with momentum 0.9, moves by s, then by 1.9 s."""
    one, two = (arrays(federation(FlowerStrategy("fedavgm", alpha=4), num_rounds=count)[0])[HEAD] for count in (1, 2))
    np.testing.assert_allclose(two, 2.9 * one, rtol=1e-5)


def test_a_strategy_that_holds_a_factor_says_so_to_the_clients_and_checks_it() -> None:
    result, grid = federation(FlowerStrategy("ffa_lora", alpha=4))

    trains = [message.content.config_records["config"].get(TRAIN_KEY) for message in grid.sent]
    assert trains == [[B, HEAD]] * 3 + [None] * 3
    assert (arrays(result)[A] == held(start())[A]).all()
    assert (arrays(result)[B] != held(start())[B]).all()


def test_a_held_factor_that_moved_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def disobedient(client: int, given: Given, config: ConfigRecord) -> RecordDict:
        return packed(moved(client, given, given), 1) if client == 0 else honest(client, given, config)

    with caplog.at_level(logging.WARNING, logger="flwr.fedpeft"):
        result, _ = federation(FlowerStrategy("ffa_lora", alpha=4), disobedient)

    assert "reply of node 1 is left out" in caplog.text
    assert f"{A!r} has changed, and strategy 'ffa_lora' holds it still" in caplog.text
    assert (arrays(result)[A] == held(start())[A]).all()


WRONG: dict[str, tuple[Reply, str]] = {
    "a name is missing": (lambda c, g, _: packed({A: g[A], B: g[B]}, 1), "tensor 2 is missing, expected"),
    "a name too many": (lambda c, g, _: packed({**g, "more": g[A]}, 1), "tensor 3 is more"),
    "another shape": (lambda c, g, _: packed({**g, B: g[B][:, :1]}, 1), r"lora_B.weight [4, 1] float32, expected"),
    "another dtype": (lambda c, g, _: packed({**g, A: g[A].double()}, 1), "float64, expected"),
    "not finite": (lambda c, g, _: packed({**g, A: g[A] * float("nan")}, 1), "NaN or infinite"),
    "no number of examples": (lambda c, g, _: packed(g, 0), "metric 'num-examples' is 0, expected a whole number"),
    "half an example": (lambda c, g, _: packed(g, 1.5), "is 1.5, expected a whole number"),
    "no arrays": (lambda c, g, _: RecordDict({"m": MetricRecord({"num-examples": 1})}), "0 ArrayRecords"),
    "no metrics": (lambda c, g, _: RecordDict({"arrays": ArrayRecord(g)}), "0 MetricRecords"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_reply_is_left_out_and_named(case: str, caplog: pytest.LogCaptureFixture) -> None:
    wrong, said = WRONG[case]

    def reply(client: int, given: Given, config: ConfigRecord) -> RecordDict:
        return (wrong if client == 1 else honest)(client, given, config)

    with caplog.at_level(logging.WARNING, logger="flwr.fedpeft"):
        result, _ = federation(FlowerStrategy("fedavg", alpha=4), reply)

    assert "round 1: reply of node 2 is left out: " in caplog.text
    assert said in caplog.text
    without = {client: held(moved(client, start(), start())) for client in (0, 2)}
    np.testing.assert_allclose(arrays(result)[HEAD], (without[0][HEAD] + 3 * without[2][HEAD]) / 4, rtol=1e-5)


def test_the_order_of_a_clients_dict_does_not_matter() -> None:
    def backwards(client: int, given: Given, config: ConfigRecord) -> RecordDict:
        return packed(dict(reversed(moved(client, given, given).items())), client + 1)

    one, two = (federation(FlowerStrategy("lora_fair", alpha=4), reply)[0] for reply in (honest, backwards))

    assert all((arrays(one)[name] == arrays(two)[name]).all() for name in start())


def test_too_few_replies_stop_the_run_with_both_numbers() -> None:
    with pytest.raises(RunError, match="round 1: 3 usable replies, strategy 'krum' needs 5"):
        federation(FlowerStrategy("krum", alpha=4))


def test_no_reply_at_all_stops_the_run() -> None:
    with pytest.raises(RunError, match="round 1: 0 usable replies"):
        federation(FlowerStrategy("fedavg", alpha=4), lambda *_: packed({}, 1))


def test_a_federation_that_never_trains_keeps_its_arrays() -> None:
    result, grid = federation(FlowerStrategy("lora_fair", alpha=4, flower=FedAvg(fraction_train=0.0)))

    assert {message.metadata.message_type for message in grid.sent} == {"evaluate"}
    assert not result.arrays


def test_clients_are_drawn_as_the_given_fedavg_says() -> None:
    flower = FedAvg(fraction_train=0.5, fraction_evaluate=0.0, min_train_nodes=1)
    _, grid = federation(FlowerStrategy("lora_fair", alpha=4, flower=flower), num_clients=4)
    assert len(grid.sent) == 2


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("fedprox", {}, UnsupportedError, "strategy 'fedprox' adds a penalty to each local step"),
        ("scaffold", {}, UnsupportedError, "strategy 'scaffold' adds a penalty to each local step"),
        ("fedsa_lora", {}, UnsupportedError, "strategy 'fedsa_lora' has clients put back what they kept"),
        ("fedrot_lora", {}, UnsupportedError, "strategy 'fedrot_lora' has clients rework what they trained"),
        ("fedex_lora", {}, UnsupportedError, "strategy 'fedex_lora' has clients change frozen weights"),
        ("flora", {}, UnsupportedError, "strategy 'flora' has clients change frozen weights"),
        ("dylora", {}, UnsupportedError, "strategy 'dylora' has clients change the scale of pairs"),
        ("lora_fare", {}, ConfigError, "did you mean 'lora_fair'"),
        ("lora_fair", {"variant": "exact"}, ConfigError, "strategy 'lora_fair'.variant = \"exact\": expected"),
        ("lora_fair", {"lambda": 1.0}, ConfigError, "lambda: unknown key"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(
    name: str, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        FlowerStrategy(name, alpha=4, options=options)


def test_ranks_of_their_own_are_refused_and_hetlora_without_them_is_served() -> None:
    one_rank = FlowerStrategy("hetlora", alpha=4, options={"client_rank": (1,)})
    with pytest.raises(UnsupportedError, match="strategy 'hetlora' sends clients part of the ranks"):
        federation(one_rank)
    result, _ = federation(FlowerStrategy("hetlora", alpha=4))
    assert set(result.arrays) == set(start())


def test_an_adapter_without_pairs_is_refused() -> None:
    strategy = FlowerStrategy("lora_fair", alpha=4)
    with pytest.raises(UnsupportedError, match="no pairs"):
        strategy.configure_train(1, ArrayRecord({HEAD: torch.zeros(2, 2)}), ConfigRecord(), PlainGrid(ClientApp(), 2))


def test_replies_before_any_question_are_refused() -> None:
    reply = Message(packed(start(), 1), dst_node_id=1, message_type="train")
    with pytest.raises(RunError, match="aggregate_train before configure_train"):
        FlowerStrategy("fedavg", alpha=4).aggregate_train(1, [reply])
