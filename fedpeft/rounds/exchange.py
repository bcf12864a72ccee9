"""One exchange with a cohort: what each client is sent, and what is taken from its reply."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.codecs.base import Common
from fedpeft.errors import FedpeftError, WireError
from fedpeft.report.record import Failure
from fedpeft.rounds.collect import in_order
from fedpeft.rounds.groups import grouped
from fedpeft.rounds.roster import job_name
from fedpeft.strategies.base import ClientUpdate, Directive, State
from fedpeft.strategies.ranks import sliced
from fedpeft.tensors import Spec, Tensors
from fedpeft.timing import phase, timed
from fedpeft.training.workbench import Workbench
from fedpeft.wire.message import Broadcast, Envelope, Evaluated, Update, expect
from fedpeft.wire.payload import pack, size, unpack

__all__ = ["Exchange", "Reply"]

_LEAST_TTL_SECONDS = 1.0
"""Flower wants some."""


@final
@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of one client: a header with what it sent, or a failure."""

    client: int
    bytes_down: int
    bytes_up: int = 0
    floats_down: int = 0
    floats_up: int = 0
    """Scalars in the bodies."""
    bits_up: float | None = None
    """The fewest bits the update could take by its codec's model, if it has one."""
    update: ClientUpdate | None = None
    header: Update | Evaluated | None = None
    failure: Failure | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The same question to each client of a cohort; replies come in ascending client order, checked."""

    grid: Grid
    bench: Workbench
    nodes: Mapping[int, int]
    state: State
    round_number: int
    workers: int = 0
    """Worker processes on this machine that answer; in these nothing is late, as nothing is in one process."""
    stack: int = 1
    """Clients that are trained side by side: their messages are sent as a group."""
    fence: int = 0
    """The fencing token of the server that asks."""

    def train(self, cohort: Iterable[int]) -> Iterator[Reply]:
        """Yield each client's checked update, or why there is none."""
        return self._ask("train", cohort)

    def evaluate(self, cohort: Iterable[int]) -> Iterator[Reply]:
        """Yield each client's sums on its own held-out examples, or why there are none."""
        return self._ask("evaluate", cohort)

    def _ask(self, kind: Literal["train", "evaluate"], cohort: Iterable[int]) -> Iterator[Reply]:
        rounds = self.bench.experiment.rounds
        bodies: dict[int | None, tuple[tuple[Spec, ...], bytes]] = {}
        sent: dict[int, tuple[int, int]] = {}
        began, longest = time.monotonic(), math.inf if self.workers else rounds.deadline_seconds or math.inf

        def outgoing() -> Iterator[tuple[int, Message]]:
            for client, group in grouped(cohort, self.stack if kind == "train" else 1, self.round_number):
                directive = self._directive(client)
                if directive.rank not in bodies:
                    bodies[directive.rank] = self._body(kind, directive)
                manifest, body = bodies[directive.rank]
                header = Broadcast(envelope=self._envelope(manifest), client=client, kind=kind, directive=directive)
                content = pack(header, body)
                sent[client] = (size(content), header.envelope.num_elements)
                left = max(_LEAST_TTL_SECONDS, longest - (time.monotonic() - began))
                ttl = min(rounds.timeout_seconds, left)
                yield client, self.grid.create_message(content, kind, self.nodes[client], group, ttl)

        window = max(rounds.window, self.stack * max(1, 2 * self.workers))
        timeout = math.inf if self.workers else rounds.timeout_seconds
        for client, message in in_order(self.grid, outgoing(), window=window, timeout=timeout, longest=longest):
            yield self._take(kind, client, message, *sent.pop(client))

    def _take(self, kind: str, client: int, message: Message | None, bytes_down: int, floats_down: int) -> Reply:
        """Check one reply; one that is late, wrong or damaged is a failure of that client alone."""
        try:
            if message is None:
                rounds = self.bench.experiment.rounds
                whole = f" or of the round's deadline_seconds = {rounds.deadline_seconds}"
                raise WireError(
                    f"no reply within rounds.timeout_seconds = {rounds.timeout_seconds}"
                    f"{whole if rounds.deadline_seconds else ''}"
                )
            if message.has_error():
                raise WireError(message.error.reason or f"Flower error code {message.error.code}")
            read = self._update if kind == "train" else self._evaluated
            update, header = read(client, message.content)
        except FedpeftError as error:
            failure = Failure(client=client, reason=str(error))
            return Reply(client=client, bytes_down=bytes_down, floats_down=floats_down, failure=failure)
        return Reply(
            client=client,
            bytes_down=bytes_down,
            bytes_up=size(message.content),
            floats_down=floats_down,
            floats_up=header.envelope.num_elements,
            bits_up=self._entropy_bits(client, update) if update is not None else None,
            update=update,
            header=header,
        )

    def _entropy_bits(self, client: int, update: ClientUpdate) -> float | None:
        return self.bench.codec.entropy_bits(update.delta.joined(update.beside), self._common("up", client))

    def _update(self, client: int, content: RecordDict) -> tuple[ClientUpdate, Update]:
        header, body = unpack(content, Update)
        manifest = self._trained(client)
        self._expect(header, client, manifest)
        with phase("codec"):
            came = self.bench.codec.decode(body, manifest, self._common("up", client)).require_finite(where=str(header))
        beside = [spec.name for spec in self.bench.strategy.beside(self.bench.adapted.attached.slots).up]
        if header.num_examples < 1:
            raise WireError(f"{header}: num_examples = {header.num_examples}, expected at least 1")
        delta, rest, directive = came.without(beside), came.select(beside), self._directive(client)
        update = ClientUpdate(
            client=client, delta=delta, num_examples=header.num_examples, beside=rest, directive=directive
        )
        return update, header

    def _evaluated(self, client: int, content: RecordDict) -> tuple[None, Evaluated]:
        header, _ = unpack(content, Evaluated)
        self._expect(header, client, ())
        return None, header

    def _expect(self, header: Update | Evaluated, client: int, manifest: tuple[Spec, ...]) -> None:
        envelope = self._envelope(manifest)
        expect(
            header,
            job=envelope.job,
            round_number=envelope.round_number,
            config_hash=envelope.config_hash,
            plan_hash=envelope.plan_hash,
            base_hash=envelope.base_hash,
            codec=self.bench.experiment.codec.names,
            manifest=manifest,
            client=client,
        )

    def _directive(self, client: int) -> Directive:
        slots = self.bench.adapted.attached.slots
        return self.bench.strategy.directive(slots, self.state, round_number=self.round_number, client=client)

    def _trained(self, client: int) -> tuple[Spec, ...]:
        """What this client was told to train, and so must send, and what goes beside it."""
        slots, strategy = self.bench.adapted.attached.slots, self.bench.strategy
        return (*self._directive(client).select(slots, strategy.uplink(slots)), *strategy.beside(slots).up)

    @timed("codec")
    def _body(self, kind: Literal["train", "evaluate"], directive: Directive) -> tuple[tuple[Spec, ...], bytes]:
        """Return what all clients that hold as many ranks are sent, encoded once."""
        sending = self._sending(kind, directive)
        return sending.manifest(), self.bench.codec_down.encode(sending, self._common("down"))

    def _sending(self, kind: Literal["train", "evaluate"], directive: Directive) -> Tensors:
        """Return the adapter, for training what the strategy sends beside it, and what rebuilds a residual."""
        slots, strategy = self.bench.adapted.attached.slots, self.bench.strategy
        whole = (self.state.exact or self.state.adapter).select(spec.name for spec in strategy.downlink(slots))
        sending = sliced(whole, slots, rank=directive.rank)
        if kind == "train":
            beside = strategy.broadcast(slots, self.state)
            sending = sending.joined(beside.require(strategy.beside(slots).down, where="sent beside the adapter"))
        return sending.joined(strategy.residual_parts(slots, self.state))

    def _common(self, direction: Literal["up", "down"], client: int | None = None) -> Common:
        return self.bench.common(direction, round_number=self.round_number, client=client)

    def _envelope(self, manifest: tuple[Spec, ...]) -> Envelope:
        return Envelope(
            job=job_name(self.bench),
            round_number=self.round_number,
            config_hash=self.bench.experiment.hash,
            plan_hash=self.bench.adapted.plan.hash,
            base_hash=self.bench.adapted.base_hash,
            codec=self.bench.experiment.codec_down.names,
            manifest=manifest,
        )
