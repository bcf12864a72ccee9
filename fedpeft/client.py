"""The client's half of a round: receive, check, train on data that stays here, send the change.

Read top to bottom: join (once), train, evaluate. Nothing leaves but a header and the encoded change.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedpeft import __version__, seeds
from fedpeft.adapters.base import Penalty
from fedpeft.adapters.plan import Plan
from fedpeft.config import Experiment
from fedpeft.errors import WireError
from fedpeft.strategies.ranks import padded, sliced
from fedpeft.tasks.base import Examples
from fedpeft.tensors import Tensors
from fedpeft.training.holding import holding
from fedpeft.training.loop import Outcome, train_locally
from fedpeft.training.optimizers import learning_rate
from fedpeft.training.workbench import Workbench
from fedpeft.wire.message import Broadcast, Envelope, Evaluated, Join, Joined, Update, expect
from fedpeft.wire.payload import pack, unpack

__all__ = ["Node", "client_app"]

_LOG = logging.getLogger(__name__)
_GAVE_UP = 1000
"""Flower error code of a client that names its reason."""


@final
@dataclass(frozen=True, kw_only=True)
class Node:
    """What the client app asks of the place it runs in."""

    experiment: Callable[[Context], Experiment]
    """The experiment this node takes part in."""
    workbench: Callable[[Context, bytes], Workbench]
    """All parts, built with the server's plan and kept between messages."""


def client_app(node: Node) -> ClientApp:
    """Return the Flower ClientApp; the same one runs in every engine."""
    app = ClientApp()

    @app.query("join")
    def _join(message: Message, context: Context) -> Message:
        return _answer(message, context, lambda: join(message, context, node.experiment(context)))

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        return _answer(message, context, lambda: train(message, context, node.workbench(context, _plan(context))))

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        return _answer(message, context, lambda: evaluate(message, context, node.workbench(context, _plan(context))))

    return app


def join(message: Message, context: Context, experiment: Experiment) -> RecordDict:
    """Take the server's plan, once, and say which client lives here.

    Raises:
        WireError: the server runs another experiment, or the plan is damaged.
    """
    header, body = unpack(message.content, Join)
    expect(
        header,
        job=header.envelope.job,
        round_number=0,
        config_hash=experiment.hash,
        plan_hash=Plan.from_bytes(body).hash,
        base_hash=None,
        codec=experiment.codec.name,
    )
    context.state["run"] = ConfigRecord({"job": header.envelope.job, "plan": body})
    versions = {"fedpeft": __version__}
    return pack(Joined(envelope=header.envelope, client=_client(context), versions=versions), b"")


def train(message: Message, context: Context, bench: Workbench) -> RecordDict:
    """Train the received adapter on this client's data and return the encoded change.

    Raises:
        WireError: the message is not for this client, experiment, plan or base model.
        FedpeftError: the data or the training is at fault.
    """
    began = time.monotonic()
    header, received = _receive(message, context, bench)
    names = header.directive.train or tuple(received)
    examples, _ = bench.client_examples(header.client)
    outcome = _train_slots(bench, names, received, examples, header)
    delta = _delta(bench, header, received, names)
    update = Update(
        envelope=_envelope(bench, header, delta),
        client=header.client,
        num_examples=len(examples),
        num_steps=outcome.num_steps,
        train_loss=outcome.train_loss,
        seconds=time.monotonic() - began,
    )
    return pack(update, bench.codec.encode(delta))


def evaluate(message: Message, context: Context, bench: Workbench) -> RecordDict:
    """Evaluate the received adapter on this client's own held-out examples and return sums.

    Raises:
        WireError: as for train.
    """
    header, _ = _receive(message, context, bench)
    _, held_out = bench.client_examples(header.client)
    envelope = _envelope(bench, header, Tensors())
    with bench.adapted.adapter.scaled(bench.adapted.attached, header.directive.scale):
        sums = bench.score(held_out)
    return pack(Evaluated(envelope=envelope, client=header.client, num_examples=len(held_out), sums=sums), b"")


def _receive(message: Message, context: Context, bench: Workbench) -> tuple[Broadcast, Tensors]:
    """Check a broadcast against what this node holds, and put the adapter in place."""
    header, body = unpack(message.content, Broadcast)
    adapted, slots, rank = bench.adapted, bench.adapted.attached.slots, header.directive.rank
    manifest = header.directive.sent(slots, bench.strategy.downlink(slots))
    expect(
        header,
        job=str(context.state["run"]["job"]),
        round_number=header.envelope.round_number,
        config_hash=bench.experiment.hash,
        plan_hash=adapted.plan.hash,
        base_hash=adapted.base_hash,
        codec=bench.codec.name,
        manifest=manifest,
        client=_client(context),
    )
    start = padded(sliced(adapted.initial, slots, rank=rank), slots, rank=rank)
    received = start.replace(padded(bench.codec.decode(body, manifest), slots, rank=rank))
    adapted.attached.write(received)
    return header, received


def _delta(bench: Workbench, header: Broadcast, received: Tensors, names: Sequence[str]) -> Tensors:
    """What local training changed, in the slots and ranks that the directive names."""
    attached, asked = bench.adapted.attached, header.directive
    return sliced((attached.read() - received).select(names), attached.slots, rank=asked.rank, held=asked.held)


def _train_slots(
    bench: Workbench, names: Sequence[str], received: Tensors, examples: Examples, header: Broadcast
) -> Outcome:
    experiment, adapted, round_number = bench.experiment, bench.adapted, header.envelope.round_number
    with (
        _only(adapted.attached.parameters(), names) as parameters,
        adapted.adapter.scaled(adapted.attached, header.directive.scale),
        holding(adapted.attached, header.directive.held),
    ):

        def penalty() -> Penalty:
            own = adapted.adapter.penalty(adapted.attached)
            extra = bench.strategy.penalty(parameters, received)
            terms = [term for term in (own.data_free, extra) if term is not None]
            return Penalty(per_sample=own.per_sample, data_free=sum(terms[1:], start=terms[0]) if terms else None)

        return train_locally(
            adapted.attached.model,
            parameters,
            examples,
            task=adapted.task,
            train=experiment.train,
            rate=learning_rate(experiment.train, round_number, experiment.rounds.num_rounds),
            seed=seeds.derive(experiment.seed, "train", round_number, header.client),
            precision=experiment.compute.precision,
            penalty=penalty,
        )


@contextmanager
def _only(parameters: Mapping[str, nn.Parameter], names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Let only the named parameters train inside the block."""
    others = [parameter for name, parameter in parameters.items() if name not in names]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield {name: parameters[name] for name in parameters if name in names}
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def _answer(message: Message, context: Context, work: Callable[[], RecordDict]) -> Message:
    """Do the work; whatever goes wrong becomes one named error that the server counts, never a lost reply."""
    try:
        return Message(work(), reply_to=message)
    except Exception as error:  # noqa: BLE001 - the boundary: an unexpected error is a failure of this client alone
        _LOG.warning("client %s gave up", _client(context), exc_info=error)
        return Message(Error(_GAVE_UP, f"{type(error).__name__}: {error}"), reply_to=message)


def _envelope(bench: Workbench, header: Broadcast, delta: Tensors) -> Envelope:
    return Envelope(
        job=header.envelope.job,
        round_number=header.envelope.round_number,
        config_hash=bench.experiment.hash,
        plan_hash=bench.adapted.plan.hash,
        base_hash=bench.adapted.base_hash,
        codec=bench.codec.name,
        manifest=delta.manifest(),
    )


def _client(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _plan(context: Context) -> bytes:
    if "run" not in context.state:
        raise WireError(f"client {_client(context)} has not joined this run; it holds no plan")
    plan = context.state["run"]["plan"]
    if not isinstance(plan, bytes):
        raise WireError(f"client {_client(context)} holds a damaged plan; restart the node")
    return plan
