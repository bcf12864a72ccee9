"""What a strategy is: frozen state and functions over it, both halves of a round in one file.

Server: init -> (directive, broadcast -> accumulate each update -> apply) each round.
Client: begin -> penalty during local training -> finish; an evaluation starts from begin too. A strategy whose
total is a WeightedSum streams: its memory does not grow with the number of clients. One that needs every update keeps
a Stack, and says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

from torch import Tensor

from fedpeft.adapters.base import Slot
from fedpeft.config import Evaluate, Train
from fedpeft.strategies.ranks import sliced_specs
from fedpeft.tensors import Spec, Tensors

__all__ = ["Beside", "ClientUpdate", "Directive", "Parting", "Stack", "State", "Strategy", "Turn", "WeightedSum"]

T = TypeVar("T")


@final
@dataclass(frozen=True, kw_only=True)
class State:
    """All that a strategy carries from round to round; a checkpoint holds exactly this."""

    adapter: Tensors
    """The global adapter: the exchanged slots, float32."""
    memory: Tensors = field(default_factory=Tensors)
    """The strategy's own tensors (momentum, control variates, residuals)."""
    exact: Tensors = field(default_factory=Tensors)
    """The adapter before the downlink's codec, with feedback.down; empty without. The server's alone: what a strategy
    returns of it is not looked at."""
    sent: Tensors = field(default_factory=Tensors)
    """Where changes of the adapter go down: the packed ones of the last rounds, and which adapter each client holds.
    The server's alone, like ``exact``."""
    clip: Tensors = field(default_factory=Tensors)
    """The norm that the next round's updates are cut to, (1,) float64, where it follows them; empty without. The
    server's alone, like ``exact``."""


@final
@dataclass(frozen=True, kw_only=True)
class Directive:
    """What one client is asked to do in one round."""

    train: tuple[str, ...] | None = None
    """Names of the slots to train and send; all exchanged slots when None."""
    rank: int | None = None
    """Ranks of each A/B pair that the client holds, the first ones; all when None. It is sent no others."""
    held: int = 0
    """Ranks of these that it is sent but holds still, the first ones: only ``[held:rank]`` trains and is sent back."""
    scale: float = 1.0
    """Times the scale of each pair, in this round's training and evaluation on the client."""

    def select(self, slots: Sequence[Slot], uplink: Sequence[Spec]) -> tuple[Spec, ...]:
        """Return what the client must send of a strategy's uplink: no more, no less; factors cut to ranks that train.

        Raises:
            UnsupportedError: a pair has no such ranks.
        """
        specs = [spec for spec in uplink if self.train is None or spec.name in self.train]
        return sliced_specs(specs, slots, rank=self.rank, held=self.held)

    def sent(self, slots: Sequence[Slot], downlink: Sequence[Spec]) -> tuple[Spec, ...]:
        """Return what the client is sent of a strategy's downlink: factors cut to the ranks that it holds.

        Raises:
            UnsupportedError: a pair has no such ranks.
        """
        return sliced_specs(downlink, slots, rank=self.rank)


@final
@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """One client's checked reply."""

    client: int
    delta: Tensors
    """Trained minus received, in the slots of the directive, cut to its ranks."""
    num_examples: int
    """Examples the client holds."""
    beside: Tensors = field(default_factory=Tensors)
    """What came beside the delta, as Strategy.beside says."""
    directive: Directive = field(default_factory=Directive)
    """What the client was asked to do."""
    weight: float | None = None
    """What it counts for, where the strategy's own ``prepare`` says so; the client has no say in it."""


@final
@dataclass(frozen=True, kw_only=True)
class Beside:
    """Manifests of float32 tensors that travel with a training round and are no slots; no name is a slot's."""

    down: tuple[Spec, ...] = ()
    """Beside the adapter."""
    up: tuple[Spec, ...] = ()
    """Beside the delta."""


@final
@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one client holds in one round before it trains or evaluates."""

    slots: tuple[Slot, ...]
    received: Tensors
    """The global adapter: what came, laid over what the plan's seed made."""
    beside: Tensors = field(default_factory=Tensors)
    """What came beside it; empty in an evaluation."""
    memory: Tensors = field(default_factory=Tensors)
    """What this client kept of the newest round it trained in: one before this, or this one in an evaluation."""
    round_number: int
    num_clients: int
    """Clients of the federation, drawn or not."""
    learning_rate: float
    """Of this round's local training."""
    directive: Directive = field(default_factory=Directive)
    """What the client is asked to do."""


@final
@dataclass(frozen=True, kw_only=True)
class Parting:
    """What one client's training comes to."""

    adapter: Tensors
    """What the delta is taken of."""
    beside: Tensors = field(default_factory=Tensors)
    """What is sent beside the delta."""
    memory: Tensors = field(default_factory=Tensors)
    """What the client keeps, all of it: it takes the place of what it kept before."""


@final
@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """A running weighted sum of deltas, float64."""

    tensors: Tensors | None = None
    weight: float = 0.0
    num_updates: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class Stack:
    """Every update of the round: memory grows with the cohort."""

    updates: tuple[ClientUpdate, ...] = ()


class Strategy(ABC, Generic[T]):
    """How client updates become the next global adapter. Concrete classes are final and hold only their options."""

    def check(self, slots: Sequence[Slot]) -> None:
        """Refuse an adapter this strategy cannot serve; by default every adapter is welcome.

        Raises:
            UnsupportedError: says in one sentence what is missing.
        """
        return

    def check_settings(self, *, train: Train, evaluate: Evaluate) -> None:
        """Refuse settings under which this strategy is not what it says; by default all are welcome.

        Raises:
            UnsupportedError: names the setting, its value and the remedy.
        """
        return

    def remembers(self) -> bool:
        """Return whether clients keep tensors of their own between rounds: what finish returns as memory."""
        return False

    def takes_feedback(self) -> bool:
        """Return whether what is left out of one round's change may be added to a later one's; not by default.

        So it is where the next adapter is the last one plus a mean of the changes, in coordinates that stay.
        """
        return False

    def least_updates(self) -> int:
        """Return the fewest updates a round can be aggregated from."""
        return 1

    def rescales(self) -> bool:
        """Tell whether a directive may change the scale of the pairs; an adapter that cannot is refused at once."""
        return False

    def sums(self) -> bool:
        """Tell whether the server uses nothing of the updates but their plain sum: what noise on that sum protects."""
        return False

    def init(self, slots: Sequence[Slot], adapter: Tensors) -> State:
        """Return the state before round 1."""
        return State(adapter=adapter)

    def directive(self, slots: Sequence[Slot], state: State, *, round_number: int, client: int) -> Directive:
        """Return what one client trains this round; everything by default."""
        return Directive()

    def period(self) -> int | None:
        """Return after how many clients the directives of any round repeat, 1 where all are asked the same.

        None where that is not known: then all clients are looked at where it matters whether they are asked alike.
        """
        return 1 if type(self).directive is Strategy.directive else None

    @final
    def directives(
        self, slots: Sequence[Slot], state: State, *, round_number: int, num_clients: int
    ) -> Iterator[Directive]:
        """Yield whatever some client may be asked in a round, at least once."""
        for client in range(min(num_clients, self.period() or num_clients)):
            yield self.directive(slots, state, round_number=round_number, client=client)

    def downlink(self, slots: Sequence[Slot]) -> tuple[Spec, ...]:
        """Return what clients are sent each round; all exchanged slots by default.

        Both sides ask this. A slot left out stays on every client as the plan's seed made it.
        """
        return tuple(slot.spec for slot in slots if slot.travels)

    def uplink(self, slots: Sequence[Slot]) -> tuple[Spec, ...]:
        """Return what clients send of what they were told to train; all of it by default. Both sides ask this."""
        return tuple(slot.spec for slot in slots if slot.travels)

    def beside(self, slots: Sequence[Slot]) -> Beside:
        """Return what travels beside the adapter and the delta; nothing by default. Both sides ask this."""
        return Beside()

    def broadcast(self, slots: Sequence[Slot], state: State) -> Tensors:
        """Return what is sent beside the adapter, of the manifest ``beside(slots).down``."""
        return Tensors()

    def residual_parts(self, slots: Sequence[Slot], state: State) -> Tensors:
        """Return what rebuilds the residual on a client, float32, sent after the adapter; nothing by default.

        A strategy with a residual changes frozen weights: the adapted weight is W + residual + scale * B @ A.
        """
        return Tensors()

    def residual_manifest(self, slots: Sequence[Slot], claimed: Sequence[Spec]) -> tuple[Spec, ...]:
        """Client half: return the parts it takes, given those a header claims; nothing by default.

        Shapes may differ by round: a claim within bounds is returned as it is, any other is not.
        """
        return ()

    def residuals(self, slots: Sequence[Slot], parts: Tensors) -> Tensors:
        """Both halves: return group -> residual (d_out, d_in), float32, of these parts; nothing by default."""
        return Tensors()

    @abstractmethod
    def start(self) -> T:
        """Return the empty total of a round."""

    def prepare(self, slots: Sequence[Slot], state: State, update: ClientUpdate) -> ClientUpdate:
        """Return one checked reply as ``accumulate`` takes it; as it came by default.

        The place to pad a slice, or to weigh an update by what it makes together with the state it started from.
        """
        return update

    @abstractmethod
    def accumulate(self, total: T, update: ClientUpdate) -> T:
        """Add one update. Called in ascending client order, so sums are bitwise reproducible."""

    @abstractmethod
    def apply(self, slots: Sequence[Slot], state: State, total: T) -> State:
        """Return the state after the round, of at least one update."""

    def penalty(self, parameters: Mapping[str, Tensor], turn: Turn) -> Tensor | None:
        """Client half: a data-free scalar added to every local step's loss; none by default."""
        return None

    def begin(self, turn: Turn) -> Tensors:
        """Client half: return the adapter to train or evaluate, of what was received's manifest; that by default."""
        return turn.received

    def finish(self, turn: Turn, trained: Tensors, *, num_steps: int) -> Parting:
        """Client half: return what to send and to keep after num_steps steps; the trained adapter by default."""
        return Parting(adapter=trained)
