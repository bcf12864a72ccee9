"""One exchange with a cohort: what each client is sent, and what is taken from its reply."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.codecs.base import Common
from fedpeft.errors import RefusalCode, RefusedError
from fedpeft.report.record import Failure
from fedpeft.rounds.admission import Admission, Asked
from fedpeft.rounds.collect import in_order
from fedpeft.rounds.downlink import Downlink
from fedpeft.rounds.groups import grouped
from fedpeft.rounds.journal import Page
from fedpeft.rounds.roster import job_name
from fedpeft.strategies.base import ClientUpdate, Directive, State
from fedpeft.training.workbench import Workbench
from fedpeft.wire.message import Broadcast, Carried, Envelope, Evaluated, Update
from fedpeft.wire.payload import pack, size
from fedpeft.wire.record import BEHIND, DAMAGED, DECLINED, GAVE_UP
from fedpeft.wire.signature import Keys

__all__ = ["Exchange", "Reply"]

_LEAST_TTL_SECONDS = 1.0
"""Flower wants some."""
_CODES: dict[int, RefusalCode] = {
    GAVE_UP: "gave_up",
    DECLINED: "declined",
    BEHIND: "gave_up",
    DAMAGED: "structure",
}
"""Of Flower's error codes; all others mean that the reply was lost."""


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
    keys: Keys | None = None
    """By which replies are signed; None where nobody signs."""
    run: bytes = b""
    """Which run of the experiment asks."""
    page: Page | None = None
    """Where replies to training are kept until their round is committed."""

    def train(self, cohort: Sequence[int]) -> Iterator[Reply]:
        """Yield each client's checked update, or why there is none."""
        return self._ask("train", cohort)

    def evaluate(self, cohort: Sequence[int]) -> Iterator[Reply]:
        """Yield each client's sums on its own held-out examples, or why there are none."""
        return self._ask("evaluate", cohort)

    @cached_property
    def kept(self) -> dict[int, int]:
        """Client -> token of the server that took its reply: those that are kept, and so are not asked again."""
        found: dict[int, int] = {}
        for client, fence in self.page.clients() if self.page is not None else ():
            if client in self.nodes and found.get(client, 0) < fence <= self.fence and self._holds(client, fence):
                found[client] = fence
        return found

    def _holds(self, client: int, fence: int) -> bool:
        record = self.page.read(client, fence) if self.page is not None else None
        try:
            return record is not None and bool(
                self._admission.opened(self._question("train", client)[0], record, fence)
            )
        except RefusedError:
            return False

    def _ask(self, kind: Literal["train", "evaluate"], cohort: Sequence[int]) -> Iterator[Reply]:
        rounds, kept = self.bench.experiment.rounds, self.kept if kind == "train" else {}
        sent: dict[int, tuple[Asked, int, int]] = {}
        again: set[int] = set()
        began, longest = time.monotonic(), math.inf if self.workers else rounds.deadline_seconds or math.inf

        def asking_for(client: int, group: str, *, whole: bool = False) -> Message:
            asked, content, floats = self._question(kind, client, whole=whole)
            before = sent[client][1] if client in sent else 0
            sent[client] = (asked, before + size(content), floats)
            left = max(_LEAST_TTL_SECONDS, longest - (time.monotonic() - began))
            ttl = min(rounds.timeout_seconds, left)
            return self.grid.create_message(content, kind, self.nodes[client], group, ttl)

        def arrived(client: int, message: Message) -> Message | None:
            """Ask once more where somebody else may have answered in this client's name; with privacy it would cost.

            Or, with the whole adapter, where it does not hold what the changes begin at: it has not touched its data.
            """
            behind = self._is_behind(message)
            forged = self._first_look(sent[client][0], message) == "signature" and self.bench.mechanism is None
            if not (forged or behind) or client in again:
                return None
            again.add(client)
            return asking_for(client, str(self.round_number), whole=behind)

        stack, asked = self.stack if kind == "train" else 1, (client for client in cohort if client not in kept)
        window = max(rounds.window, stack * max(1, 2 * self.workers))
        timeout = math.inf if self.workers else rounds.timeout_seconds
        labelled = grouped(asked, stack, self.round_number)
        outgoing = ((client, asking_for(client, group)) for client, group in labelled)
        coming = in_order(self.grid, outgoing, window=window, timeout=timeout, longest=longest, arrived=arrived)
        for client in cohort:
            if client in kept:
                yield self._recalled(client, kept[client])
            else:
                yield self._take(next(coming)[1], *sent.pop(client))

    def _is_behind(self, message: Message) -> bool:
        """Tell whether a client refused because it does not hold what the changes begin at."""
        return self.bench.sends_changes and message.has_error() and message.error.code == BEHIND

    def _question(
        self, kind: Literal["train", "evaluate"], client: int, *, whole: bool = False
    ) -> tuple[Asked, RecordDict, int]:
        """Return what one client is asked, the same as it is sent, and the number of scalars it tells of."""
        directive = self._directive(client)
        parcel = self._downlinks[kind].parcel(client, directive, whole=whole)
        envelope = self._envelope(parcel.codec, parcel.carries)
        header = Broadcast(envelope=envelope, client=client, kind=kind, directive=directive, changes=parcel.changes)
        asked = Asked(client=client, kind=kind, directive=directive, answers=parcel.digest)
        return asked, pack(header, parcel.body), parcel.carries.num_elements

    @cached_property
    def _downlinks(self) -> dict[str, Downlink]:
        """What is sent, by the kind of question, made once for all that are sent the same."""
        kinds: tuple[Literal["train", "evaluate"], ...] = ("train", "evaluate")
        bench, state, number = self.bench, self.state, self.round_number
        return {kind: Downlink(bench=bench, state=state, round_number=number, kind=kind) for kind in kinds}

    def _first_look(self, asked: Asked, message: Message) -> RefusalCode | None:
        """Say what is wrong with a reply by its header, or put it on the disk; what else it is shows at its turn."""
        if (self.keys is None and self.page is None) or not message.has_content():
            return None
        try:
            self._admission.opened(asked, message.content)
        except RefusedError as error:
            return error.code
        if self.page is not None and asked.kind == "train":
            self.page.write(asked.client, self.fence, message.content)
        return None

    def _recalled(self, client: int, fence: int) -> Reply:
        """Take a reply that an earlier server was given; it counts as if it had been asked for now."""
        asked, content, floats = self._question("train", client)
        record = self.page.read(client, fence) if self.page is not None else None
        return self._take(record, asked, size(content), floats, fence)

    def _take(
        self,
        message: Message | RecordDict | None,
        asked: Asked,
        bytes_down: int,
        floats_down: int,
        fence: int | None = None,
    ) -> Reply:
        """Check one reply; one that is late, wrong or damaged is a failure of that client alone."""
        update: ClientUpdate | None = None
        header: Update | Evaluated
        try:
            content = message if isinstance(message, RecordDict) else self._arrived(message)
            if asked.kind == "train":
                header, update = self._admission.update(asked, content, fence)
            else:
                header = self._admission.evaluated(asked, content)
        except RefusedError as error:
            failure = Failure(client=asked.client, code=error.code, reason=str(error))
            return Reply(client=asked.client, bytes_down=bytes_down, floats_down=floats_down, failure=failure)
        return Reply(
            client=asked.client,
            bytes_down=bytes_down,
            bytes_up=size(content),
            floats_down=floats_down,
            floats_up=header.envelope.carries.num_elements,
            bits_up=self._entropy_bits(asked.client, update) if update is not None else None,
            update=update,
            header=header,
        )

    def _arrived(self, message: Message | None) -> RecordDict:
        """Return what a reply carries.

        Raises:
            RefusedError: none came in time, or an error; its words may be the client's, its code never is.
        """
        if message is None:
            rounds = self.bench.experiment.rounds
            whole = f" or of the round's deadline_seconds = {rounds.deadline_seconds}"
            raise RefusedError(
                "late",
                f"no reply within rounds.timeout_seconds = {rounds.timeout_seconds}"
                f"{whole if rounds.deadline_seconds else ''}",
            )
        if message.has_error():
            number = message.error.code
            raise RefusedError(_CODES.get(number, "lost"), message.error.reason or f"Flower error code {number}")
        if not message.has_content():
            raise RefusedError("structure", "a reply with neither content nor error")
        return message.content

    @cached_property
    def _admission(self) -> Admission:
        return Admission(
            bench=self.bench, state=self.state, round_number=self.round_number, fence=self.fence, keys=self.keys
        )

    def _entropy_bits(self, client: int, update: ClientUpdate) -> float | None:
        return self.bench.codec.entropy_bits(update.delta.joined(update.beside), self._common("up", client))

    def _directive(self, client: int) -> Directive:
        slots = self.bench.adapted.attached.slots
        return self.bench.strategy.directive(slots, self.state, round_number=self.round_number, client=client)

    def _common(self, direction: Literal["up", "down"], client: int | None = None) -> Common:
        return self.bench.common(direction, round_number=self.round_number, client=client)

    def _envelope(self, codec: tuple[str, ...], carries: Carried) -> Envelope:
        return Envelope(
            job=job_name(self.bench),
            round_number=self.round_number,
            config_hash=self.bench.experiment.hash,
            plan_hash=self.bench.adapted.plan.hash,
            base_hash=self.bench.adapted.base_hash,
            codec=codec,
            carries=carries,
            privacy=self.bench.claim,
            fence=self.fence,
            run=self.run,
        )
