"""What a reply must be to count: looked at in one order, cheapest first, and refused by a code at the first fault.

    structure and size, version, signature, freshness (job, round, fencing token, base), client, duplicate, manifest,
    decoding, finite numbers, norm, weight

Every expectation is the server's own; nothing is taken from a reply but its numbers. A reply that is refused is as one
that never came. Nothing is done to a reply but that its number of examples is cut: an update that is too long is not
scaled down, since whoever sent it is not to be believed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar, final

from flwr.app import RecordDict

from fedpeft.errors import FedpeftError, RefusalCode, RefusedError
from fedpeft.rounds.norms import product_norm, update_norm
from fedpeft.rounds.roster import job_name
from fedpeft.strategies.base import ClientUpdate, Directive, State
from fedpeft.tensors import Spec
from fedpeft.timing import phase
from fedpeft.training.workbench import Workbench
from fedpeft.wire.convert import MAX_HEADER_BYTES, require_version
from fedpeft.wire.message import Evaluated, Update, expect, expect_packed
from fedpeft.wire.payload import unpack
from fedpeft.wire.record import content_of
from fedpeft.wire.signature import Keys

__all__ = ["Admission", "Asked", "largest_body", "largest_reply"]

_MOST = 1e18
"""No sum of a client's measurements, and no loss, is larger: totals of many stay finite."""
_BYTES_AN_ELEMENT, _BYTES_A_TENSOR, _BYTES_A_BODY = 16, 1024, 1 << 16

_R = TypeVar("_R", Update, Evaluated)


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one client was asked."""

    client: int
    kind: Literal["train", "evaluate"]
    directive: Directive
    answers: bytes
    """The sha256 of the body that it was sent."""


@final
@dataclass(frozen=True, kw_only=True)
class Admission:
    """What the replies of one round must be; it remembers whose were taken."""

    bench: Workbench
    state: State
    round_number: int
    fence: int
    """The token of the server that asks."""
    keys: Keys | None = None
    """None in a simulation: nobody signs there."""
    _taken: set[tuple[str, int]] = field(default_factory=set)

    def update(self, asked: Asked, record: RecordDict, fence: int | None = None) -> tuple[Update, ClientUpdate]:
        """Return a client's update, which counts from now on; ``fence``: of an earlier server that it answered.

        Raises:
            RefusedError: with its code.
        """
        header, body = self._opened(asked, record, Update, fence)
        update = self._decoded(asked, header, body)
        self._require_bounds(update)
        self._taken.add((asked.kind, asked.client))
        return header, update

    def evaluated(self, asked: Asked, record: RecordDict) -> Evaluated:
        """Return a client's measurements, which count from now on.

        Raises:
            RefusedError: with its code.
        """
        header, _ = self._opened(asked, record, Evaluated)
        if set(header.sums) != self._measured or header.sums.get("weight", 0.0) < 0:
            raise RefusedError("structure", f"{header}: sums of {len(header.sums)} names, not those of the task")
        for name, value in header.sums.items():
            _require_moderate(f"{header}: {name}", value)
        self._taken.add((asked.kind, asked.client))
        return header

    def opened(self, asked: Asked, record: RecordDict, fence: int | None = None) -> Update | Evaluated:
        """Return the header of a reply whose body is not looked at yet: it is from whom it should be, and fresh.

        Raises:
            RefusedError: with its code.
        """
        if asked.kind == "train":
            return self._opened(asked, record, Update, fence)[0]
        return self._opened(asked, record, Evaluated, fence)[0]

    def _opened(self, asked: Asked, record: RecordDict, kind: type[_R], fence: int | None = None) -> tuple[_R, bytes]:
        with _stage("structure"):
            content = content_of(record)
        manifest = self._manifest(asked)
        _require_size(len(content.header), MAX_HEADER_BYTES, "header")
        _require_size(len(content.body), largest_body(manifest), "body")
        with _stage("version"):
            require_version(content.header)
        if self.keys is not None:
            self.keys.require(asked.client, record)
        with _stage("structure"):
            header, body = unpack(record, kind)
        self._expect(asked, header, manifest, self.fence if fence is None else fence)
        return header, body

    def _expect(self, asked: Asked, header: Update | Evaluated, manifest: tuple[Spec, ...], fence: int) -> None:
        bench = self.bench
        expect(
            header,
            job=job_name(bench),
            round_number=self.round_number,
            config_hash=bench.experiment.hash,
            plan_hash=bench.adapted.plan.hash,
            base_hash=bench.adapted.base_hash,
            codec=None,
            client=asked.client,
            fence=fence,
            answers=asked.answers,
        )
        if (asked.kind, asked.client) in self._taken:
            raise RefusedError("duplicate", f"{header}: a second one in round {self.round_number}")
        expect_packed(header, codec=bench.experiment.codec.words, manifest=manifest, privacy=bench.claim)

    def _manifest(self, asked: Asked) -> tuple[Spec, ...]:
        """Return what this client was told to train, and so must send, and what goes beside it."""
        if asked.kind == "evaluate":
            return ()
        slots, strategy = self.bench.adapted.attached.slots, self.bench.strategy
        return (*asked.directive.select(slots, strategy.uplink(slots)), *strategy.beside(slots).up)

    def _decoded(self, asked: Asked, header: Update, body: bytes) -> ClientUpdate:
        bench, manifest = self.bench, self._manifest(asked)
        common = bench.common("up", round_number=self.round_number, client=asked.client)
        with phase("codec"):
            with _stage("decode"):
                came = bench.codec.decode(body, manifest, common)
            with _stage("not_finite"):
                came.require_finite(where=str(header))
        if header.train_loss is not None:
            _require_moderate(f"{header}: train_loss", header.train_loss)
        beside = [spec.name for spec in bench.strategy.beside(bench.adapted.attached.slots).up]
        most = bench.experiment.rounds.max_examples
        return ClientUpdate(
            client=asked.client,
            delta=came.without(beside),
            num_examples=header.num_examples if most is None else min(header.num_examples, most),
            beside=came.select(beside),
            directive=asked.directive,
        )

    def _require_bounds(self, update: ClientUpdate) -> None:
        """Refuse an update that would move the model further than rounds.max_update_norm and max_product_norm say."""
        rounds = self.bench.experiment.rounds
        if rounds.max_update_norm is not None:
            _require_within("max_update_norm", update_norm(update), rounds.max_update_norm)
        if rounds.max_product_norm is not None:
            slots = self.bench.adapted.attached.slots
            _require_within(
                "max_product_norm", product_norm(slots, self.state.adapter, update), rounds.max_product_norm
            )

    @cached_property
    def _measured(self) -> set[str]:
        """The names of the sums that this task's clients measure."""
        return set(self.bench.score(self.bench.held_out[:1]))


def largest_body(manifest: tuple[Spec, ...]) -> int:
    """Return more bytes than any codec's encoding of a manifest has."""
    elements = sum(spec.num_elements for spec in manifest)
    return _BYTES_AN_ELEMENT * elements + _BYTES_A_TENSOR * len(manifest) + _BYTES_A_BODY


def largest_reply(bench: Workbench) -> int:
    """Return more bytes than Flower takes to put together any reply to what this experiment asks."""
    slots, strategy = bench.adapted.attached.slots, bench.strategy
    body = largest_body((*strategy.uplink(slots), *strategy.beside(slots).up))
    return body + 2 * MAX_HEADER_BYTES + _BYTES_A_BODY


@contextmanager
def _stage(code: RefusalCode) -> Iterator[None]:
    """Give what is wrong here this code, unless it has one of its own."""
    try:
        yield
    except RefusedError:
        raise
    except FedpeftError as error:
        raise RefusedError(code, str(error)) from error


def _require_size(got: int, most: int, what: str) -> None:
    if got > most:
        raise RefusedError("size", f"{what} of {got} bytes, expected at most {most}")


def _require_within(option: str, norm: float, most: float) -> None:
    if not norm <= most:
        raise RefusedError("norm", f"norm {norm:.4g}, expected at most rounds.{option} = {most:g}")


def _require_moderate(what: str, value: float) -> None:
    if not abs(value) <= _MOST:
        raise RefusedError("not_finite", f"{what} = {value:.4g}, expected a magnitude of at most {_MOST:g}")
