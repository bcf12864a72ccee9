"""Any of our strategies as a standard Flower strategy, for a ServerApp and ClientApps that are not fedpeft's.

Clients get the peft state dict as an ArrayRecord, train it and send it back whole, with ``num-examples`` among their
metrics, as for Flower's FedAvg. Sampling and evaluation are those of the FedAvg that is given; only the arithmetic of
``aggregate_train`` is ours. A strategy with a half on the client that a plain ClientApp cannot know is refused.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy import Strategy as FlowerBase
from pydantic import ValidationError

from fedpeft import plugins
from fedpeft.adapters.base import Slot
from fedpeft.adapters.state_dict import slots_of
from fedpeft.config.explain import explain
from fedpeft.errors import ConfigError, FedpeftError, RunError, UnsupportedError, WireError
from fedpeft.strategies.base import ClientUpdate, State, Strategy
from fedpeft.tensors import Tensors

__all__ = ["TRAIN_KEY", "FlowerStrategy"]

TRAIN_KEY = "train-tensors"
"""In the ConfigRecord of a client that must not train every tensor: the names of those that it trains."""
_LOG = logging.getLogger("flwr.fedpeft")
"""Below Flower's own logger, so that it comes out where Flower's lines do."""


@final
class FlowerStrategy(FlowerBase):
    """``FlowerStrategy("lora_fair", alpha=16).start(grid=grid, initial_arrays=...)``."""

    def __init__(
        self,
        name: str,
        *,
        alpha: float,
        rslora: bool = False,
        options: Mapping[str, Any] | None = None,
        flower: FedAvg | None = None,
    ) -> None:
        """Take a strategy by its name, with its options as in an experiment file.

        ``alpha`` and ``rslora`` are peft's ``lora_alpha`` and ``use_rslora``; ``flower`` samples and evaluates.

        Raises:
            ConfigError: no such strategy, or its options are wrong.
            UnsupportedError: part of the strategy runs inside the client's training.
        """
        self._name, self._alpha, self._rslora = name, alpha, rslora
        self._strategy = _made(name, dict(options or {}))
        self._flower = flower or FedAvg()
        self._slots: tuple[Slot, ...] = ()
        self._state: State | None = None
        self._asked: dict[int, tuple[str, ...]] = {}

    def summary(self) -> None:
        """Log what aggregates, and how clients are drawn."""
        _LOG.info("\t├──> Aggregation: fedpeft strategy %r", self._name)
        self._flower.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of a round, to the clients that FedAvg draws.

        Raises:
            UnsupportedError: the arrays are no peft state dict, or the strategy cannot serve this adapter.
        """
        state = self._begin(arrays)
        drawn = self._flower.configure_train(server_round, arrays, config, grid)
        self._asked = {}
        return [self._asking(message, state, server_round) for message in drawn]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global adapter and the clients' mean metrics; a reply that is wrong is left out and logged.

        Raises:
            RunError: too few replies for the strategy, or the aggregate is not finite.
        """
        replies = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        if not self._asked and not replies:
            return None, None
        state, updates, contents = self._required_state(), [], []
        for reply in replies:
            try:
                updates.append(self._strategy.prepare(self._slots, state, self._update(reply, state)))
                contents.append(reply.content)
            except FedpeftError as error:
                _LOG.warning("round %d: reply of node %d is left out: %s", server_round, _node(reply), error)
        self._require_enough(len(updates), server_round)
        total = self._strategy.start()
        for update in updates:
            total = self._strategy.accumulate(total, update)
        self._state = self._strategy.apply(self._slots, state, total)
        self._state.adapter.require_finite(where=f"global adapter after round {server_round}")
        metrics = self._flower.train_metrics_aggr_fn(contents, self._flower.weighted_by_key)
        return ArrayRecord(dict(self._state.adapter)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return FedAvg's messages."""
        return self._flower.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return FedAvg's mean metrics."""
        return self._flower.aggregate_evaluate(server_round, replies)

    def _begin(self, arrays: ArrayRecord) -> State:
        """Take the arrays as the global adapter; what the strategy remembers stays while the adapter has its shape."""
        adapter = Tensors(arrays.to_torch_state_dict())
        slots = slots_of(adapter, alpha=self._alpha, rslora=self._rslora)
        adapter.require_finite(where="arrays")
        if self._state is None or slots != self._slots:
            self._strategy.check(slots)
            self._slots, self._state = slots, self._strategy.init(slots, adapter)
        else:
            self._state = State(adapter=adapter, memory=self._state.memory)
        return self._state

    def _asking(self, message: Message, state: State, server_round: int) -> Message:
        """Note what a client is to train, and say so in its config where that is not everything."""
        node = message.metadata.dst_node_id
        directive = self._strategy.directive(self._slots, state, round_number=server_round, client=node)
        if directive.rank is not None:
            raise UnsupportedError(
                f"strategy {self._name!r} sends clients part of the ranks, which a plain ClientApp cannot train: "
                "run it as fedpeft"
            )
        self._asked[node] = tuple(state.adapter) if directive.train is None else directive.train
        if directive.train is None:
            return message
        arrays, config = self._flower.arrayrecord_key, self._flower.configrecord_key
        told = ConfigRecord({**message.content.config_records[config], TRAIN_KEY: list(directive.train)})
        content = RecordDict({arrays: message.content.array_records[arrays], config: told})
        return Message(content, node, message.metadata.message_type)

    def _update(self, reply: Message, state: State) -> ClientUpdate:
        """Check one reply.

        Raises:
            WireError: it is an error, or not one adapter with a number of examples, or a held tensor has moved.
            TensorMismatchError: the tensors are not this adapter's, or not finite.
        """
        node = _node(reply)
        if reply.has_error():
            raise WireError(reply.error.reason or f"Flower error code {reply.error.code}")
        if node not in self._asked:
            raise WireError(f"node {node} was not asked to train this round")
        count = _num_examples(reply.content, self._flower.weighted_by_key)
        trained = _in_order(_only(reply.content.array_records, "ArrayRecord"), state.adapter)
        trained.require(state.adapter.manifest(), where=f"node {node}").require_finite(where=f"node {node}")
        for name in state.adapter:
            if name not in self._asked[node] and not trained[name].equal(state.adapter[name]):
                raise WireError(f"{name!r} has changed, and strategy {self._name!r} holds it still: see {TRAIN_KEY!r}")
        return ClientUpdate(client=node, delta=(trained - state.adapter).select(self._asked[node]), num_examples=count)

    def _require_enough(self, count: int, server_round: int) -> None:
        if count < (least := self._strategy.least_updates()):
            raise RunError(f"round {server_round}: {count} usable replies, strategy {self._name!r} needs {least}")

    def _required_state(self) -> State:
        if self._state is None:
            raise RunError("aggregate_train before configure_train: there is no global adapter yet")
        return self._state


_NEEDS_OUR_CLIENT = {
    "penalty": "adds a penalty to each local step",
    "begin": "has clients put back what they kept",
    "finish": "has clients rework what they trained",
    "uplink": "has clients keep a part of it",
    "beside": "has more than an adapter travel",
    "residual_parts": "has clients change frozen weights",
    "rescales": "has clients change the scale of pairs",
}
"""Methods whose part on the client a plain ClientApp does not do, and what one that has its own asks of clients."""


def _made(name: str, options: dict[str, Any]) -> Strategy[Any]:
    module = vars(plugins.load("strategy", name))
    try:
        strategy: Strategy[Any] = module["make"](module["Options"].model_validate(options))
    except ValidationError as error:
        lines = explain(f"strategy {name!r}", module["Options"], options, error, group="strategy")
        raise ConfigError("\n".join(lines)) from error
    for method, does in _NEEDS_OUR_CLIENT.items():
        if vars(Strategy)[method] is not getattr(type(strategy), method):
            raise UnsupportedError(f"strategy {name!r} {does}, which a plain ClientApp does not: run it as fedpeft")
    return strategy


def _num_examples(content: RecordDict, key: str) -> int:
    value = _only(content.metric_records, "MetricRecord").get(key)
    if not isinstance(value, int | float) or not value >= 1 or value != int(value):
        raise WireError(f"metric {key!r} is {value!r}, expected a whole number of at least 1")
    return int(value)


def _only(records: Mapping[str, Any], kind: str) -> Any:
    if len(records) != 1:
        raise WireError(f"{len(records)} {kind}s, expected exactly one")
    return next(iter(records.values()))


def _in_order(record: ArrayRecord, wanted: Sequence[str] | Tensors) -> Tensors:
    """Return the arrays in the adapter's order, which a client's dict need not have; what differs stays to be seen."""
    given = record.to_torch_state_dict()
    return Tensors({name: given.pop(name) for name in wanted if name in given} | given)


def _node(reply: Message) -> int:
    return reply.metadata.src_node_id
