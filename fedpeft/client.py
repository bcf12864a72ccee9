"""The client's half of a round: receive, check, train on data that stays here, send the change.

Read top to bottom: train (begin, the training itself, conclude), evaluate; before the first, ``handshake``. Nothing
leaves but a header and the encoded change.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, final

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpeft.config import Experiment
from fedpeft.errors import WireError
from fedpeft.handshake import client_of, join, plan_of
from fedpeft.pinning.gate import Gate
from fedpeft.privacy.ledger import Charge
from fedpeft.privacy.own import OwnLedger
from fedpeft.rounds.answered import Answered, once
from fedpeft.rounds.downlink import arrived, kept, laid_over, packed
from fedpeft.rounds.memory import recall, remember
from fedpeft.strategies.base import Turn
from fedpeft.strategies.ranks import sliced
from fedpeft.tasks.base import Examples
from fedpeft.tensors import Tensors
from fedpeft.timing import phase, timed
from fedpeft.training.changes import without_held
from fedpeft.training.distributed import hidden
from fedpeft.training.feedback import joined_memory, owed, own, send
from fedpeft.training.loop import Outcome
from fedpeft.training.optimizers import learning_rate
from fedpeft.training.turn import train_turn
from fedpeft.training.workbench import Workbench
from fedpeft.wire.failure import failure
from fedpeft.wire.message import Broadcast, Carried, Envelope, Evaluated, Update, expect
from fedpeft.wire.payload import pack, unpack
from fedpeft.wire.signature import Signer

__all__ = ["Begun", "Node", "answer", "begin", "client_app", "conclude", "place"]

_LOG = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class Node:
    """What the client app asks of the place it runs in."""

    experiment: Callable[[Context], Experiment]
    """The experiment this node takes part in."""
    workbench: Callable[[Context, bytes], Workbench]
    """All parts, built with the server's plan and kept between messages."""
    ledger: Callable[[Context, Experiment], OwnLedger | None] = lambda *_: None
    """Where this node itself keeps what its data's privacy has cost, whatever servers say; None where it does not."""
    gate: Callable[[Context], Gate | None] = lambda _: None
    """What this node's operator pinned; None where nothing is."""
    tells: bool = False
    """Whether an error's words may go to the server: in a simulation, where all is one user's."""
    signer: Callable[[Context], Signer | None] = lambda _: None
    """This client's own key, by which its replies are known; None where it has none, as in a simulation."""
    answered: Callable[[Context], Answered | None] = lambda _: None
    """Where this client's updates are before they are sent; None where nobody asks twice, as in a simulation."""


def client_app(node: Node) -> ClientApp:
    """Return the Flower ClientApp; the same one runs in every engine."""
    app = ClientApp()

    @app.query("join")
    def _join(message: Message, context: Context) -> Message:
        return answer(message, context, node, lambda: join(message, context, node.experiment(context)))

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        return answer(message, context, node, lambda: _trained(message, context, node))

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, node, lambda: _evaluated(message, context, node))

    return app


def _trained(message: Message, context: Context, node: Node) -> RecordDict:
    bench = node.workbench(context, plan_of(context))
    answered = None if bench.remembers() else node.answered(context)
    return once(
        answered, message.content, lambda: train(message, context, bench, node.ledger(context, bench.experiment))
    )


def _evaluated(message: Message, context: Context, node: Node) -> RecordDict:
    bench = node.workbench(context, plan_of(context))
    if (ledger := node.ledger(context, bench.experiment)) is not None:
        ledger.admit(bench.mechanism)
    return evaluate(message, context, bench)


@final
@dataclass(frozen=True, kw_only=True)
class Begun:
    """A client's training before its first step: what came, checked, and the data it is for."""

    header: Broadcast
    turn: Turn
    parts: Tensors
    """What rebuilds a residual on the frozen weights."""
    examples: Examples
    began: float = field(default_factory=time.monotonic)


def train(message: Message, context: Context, bench: Workbench, ledger: OwnLedger | None = None) -> RecordDict:
    """Train the received adapter on this client's data and return the encoded change.

    Raises:
        FedpeftError: as for begin, or the training is at fault.
    """
    begun = begin(message, context, bench, ledger)
    place(bench, begun.turn, begun.parts)
    outcome = train_turn(bench, begun.turn, begun.examples, client=begun.header.client)
    return conclude(context, bench, begun, bench.adapted.attached.read(), outcome)


def begin(message: Message, context: Context, bench: Workbench, ledger: OwnLedger | None = None) -> Begun:
    """Check what came and open this client's data; a ledger of its own is charged before that is touched.

    Raises:
        WireError: the message is not for this client, experiment, plan or base model.
        FedpeftError: the data is at fault, or the ledger's budget is spent.
    """
    began = time.monotonic()
    header, turn, parts = _receive(message, context, bench, kind="train")
    if ledger is not None:
        charge = Charge(round=turn.round_number, clients=(header.client,), inputs=turn.received.digest())
        ledger.charge(charge, bench.mechanism)
    examples, _ = bench.client_examples(header.client)
    return Begun(header=header, turn=turn, parts=parts, examples=examples, began=began)


def conclude(
    context: Context, bench: Workbench, begun: Begun, trained: Tensors, outcome: Outcome, *, shared_by: int = 1
) -> RecordDict:
    """Return the encoded change from what was received to what was trained, and keep what is the client's own."""
    header, turn = begun.header, begun.turn
    delta, memory = _finish(bench, header, turn, trained, outcome)
    delta = hidden(bench, delta, client=header.client, round_number=turn.round_number)
    update = Update(
        envelope=_envelope(bench, header, delta),
        client=header.client,
        **_told(bench, len(begun.examples), outcome, (time.monotonic() - begun.began) / shared_by),
    )
    body, errors = _encoded(bench, header, delta, owed(recall(context.state, before=turn.round_number)))
    reply = pack(update, body)
    if bench.keeps():
        held = kept(bench, header, turn.received)
        remember(context.state, joined_memory(memory, errors).joined(held), round_number=turn.round_number)
    return reply


def _told(bench: Workbench, num_examples: int, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Return what the header tells of the training; with privacy the same of everyone, since noise hides none of it."""
    if bench.mechanism is not None:
        return {"num_examples": 1, "num_steps": 0, "train_loss": None, "seconds": 0.0}
    steps, loss = outcome.num_steps, outcome.train_loss
    return {"num_examples": num_examples, "num_steps": steps, "train_loss": loss, "seconds": seconds}


def evaluate(message: Message, context: Context, bench: Workbench) -> RecordDict:
    """Evaluate the received adapter on this client's own held-out examples and return sums.

    What the client keeps to itself is in place, that of this round's training included.

    Raises:
        WireError: as for train.
    """
    if bench.mechanism is not None:
        raise WireError("with [privacy] nothing measured on this client's data is sent; the server asked for it")
    header, turn, parts = _receive(message, context, bench, kind="evaluate")
    place(bench, turn, parts)
    _, held_out = bench.client_examples(header.client)
    envelope = _envelope(bench, header, Tensors())
    with bench.adapted.adapter.scaled(bench.adapted.attached, header.directive.scale):
        sums = bench.score(held_out)
    return pack(Evaluated(envelope=envelope, client=header.client, num_examples=len(held_out), sums=sums), b"")


def _receive(
    message: Message, context: Context, bench: Workbench, *, kind: Literal["train", "evaluate"]
) -> tuple[Broadcast, Turn, Tensors]:
    """Check a broadcast against what this node holds; return the client's turn, and what rebuilds a residual."""
    header, body = unpack(message.content, Broadcast)
    adapted, slots = bench.adapted, bench.adapted.attached.slots
    beside = bench.strategy.beside(slots).down if kind == "train" else ()
    fixed = (*header.directive.sent(slots, bench.strategy.downlink(slots)), *beside)
    parts = bench.strategy.residual_manifest(slots, header.envelope.carries.told)
    manifest = (*fixed, *parts)
    expect(
        header,
        job=str(context.state["run"]["job"]),
        round_number=header.envelope.round_number,
        config_hash=bench.experiment.hash,
        plan_hash=adapted.plan.hash,
        base_hash=adapted.base_hash,
        codec=packed(bench, header),
        manifest=manifest,
        told=parts,
        privacy=bench.claim,
        client=client_of(context),
    )
    experiment, round_number = bench.experiment, header.envelope.round_number
    memory = recall(context.state, before=round_number + (kind == "evaluate"))
    with phase("codec"):
        came = arrived(bench, header, body, manifest, memory)
    names, part_names = ([spec.name for spec in specs] for specs in (beside, parts))
    turn = Turn(
        slots=slots,
        received=laid_over(bench, header, came.without([*names, *part_names])),
        beside=came.select(names),
        memory=own(without_held(memory)),
        round_number=round_number,
        num_clients=bench.shares.num_clients,
        learning_rate=learning_rate(experiment.train, round_number, experiment.rounds.num_rounds),
        directive=header.directive,
    )
    return header, turn, came.select(part_names)


def place(bench: Workbench, turn: Turn, parts: Tensors) -> Tensors:
    """Put in place what the client's turn begins with, and return the adapter's part of it."""
    start = bench.strategy.begin(turn)
    bench.adapted.place(start, bench.strategy.residuals(turn.slots, parts))
    return start


def _finish(
    bench: Workbench, header: Broadcast, turn: Turn, trained: Tensors, outcome: Outcome
) -> tuple[Tensors, Tensors]:
    """Return what this client sends, the change first, in the slots and ranks it was asked for, and what it keeps."""
    asked, strategy = header.directive, bench.strategy
    parting = strategy.finish(turn, trained, num_steps=outcome.num_steps)
    sent = [spec.name for spec in asked.select(turn.slots, strategy.uplink(turn.slots))]
    delta = sliced((parting.adapter - turn.received).select(sent), turn.slots, rank=asked.rank, held=asked.held)
    beside = parting.beside.require(strategy.beside(turn.slots).up, where="sent beside the delta")
    return delta.joined(beside), parting.memory.require_finite(where=f"memory of client {header.client}")


@timed("codec")
def _encoded(bench: Workbench, header: Broadcast, delta: Tensors, errors: Tensors) -> tuple[bytes, Tensors]:
    """Return the body, and what the codec leaves out of it and earlier ones where that is to be sent later."""
    common = bench.common("up", round_number=header.envelope.round_number, client=header.client)
    if not bench.experiment.feedback.up:
        return bench.codec.encode(delta, common), Tensors()
    return send(bench.codec, common, delta, errors, bench.adapted.attached.slots, header.directive)


def answer(message: Message, context: Context, node: Node, work: Callable[[], RecordDict]) -> Message:
    """Do the work; whatever goes wrong becomes one coded error that the server counts, never a lost reply."""
    try:
        if (gate := node.gate(context)) is not None:
            gate.require(node.experiment(context), message)
        signer, reply = node.signer(context), work()
        return Message(reply if signer is None else signer.signed(reply), reply_to=message)
    except Exception as error:  # noqa: BLE001 - the boundary: an unexpected error is a failure of this client alone
        who = f"client {context.node_config.get('partition-id')}"
        told = failure(error, _LOG, who=who, words=node.tells, hidden=_keeps_silent(node, context))
        return Message(told, reply_to=message)


def _keeps_silent(node: Node, context: Context) -> bool:
    """Tell whether even an error's kind, which may depend on private data, stays in this node's log."""
    try:
        return node.experiment(context).privacy is not None
    except Exception:  # noqa: BLE001 - no experiment, so no data was read
        return False


def _envelope(bench: Workbench, header: Broadcast, delta: Tensors) -> Envelope:
    return Envelope(
        job=header.envelope.job,
        round_number=header.envelope.round_number,
        config_hash=bench.experiment.hash,
        plan_hash=bench.adapted.plan.hash,
        base_hash=bench.adapted.base_hash,
        codec=bench.experiment.codec.words,
        carries=Carried.of(delta.manifest()),
        privacy=bench.claim,
        fence=header.envelope.fence,
        answers=header.envelope.payload,
    )
